#!/usr/bin/env bash
# music-metadata 3.6.1 and 12.1.0 (npm): the ID3v1 tag at the end of an MP3 file beats the newer ID3v2 tag at its head.
#
# Expected: where a file has both tags, year and track number are those of ID3v2, as title and artist are. ID3v1 is only a fallback:
# it has room for 4 digits and one byte, and old programs left it behind when the ID3v2 tag was corrected.
# Happens: title and artist come from ID3v2, but the year and the track number from ID3v1, so that one answer mixes both: track 7
# (ID3v1) of 20 (ID3v2), and year 1971 beside the date 2003. Both versions do this (12.1.0 is the newest at the time of writing).
#
# Second: an ID3v1 comment may have 30 letters. Only if its 29th byte is zero is the 30th a track number (ID3v1.1).
# Expected: no track number for a comment of 30 letters.
# Happens: 3.6.1 does not look at the 29th byte: a comment that ends in "xy" is cut by two letters, and its "y" is track 121.
set -eu
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
npm install --silent --no-audit --no-fund --ignore-scripts --cache cache --prefix . \
    old@npm:music-metadata@3.6.1 new@npm:music-metadata@12.1.0 >&2 || exit 2

cat >run.mjs <<'JS'
import { writeFileSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import * as newer from 'new';
const older = createRequire(import.meta.url)('old');
const version = (name) => JSON.parse(readFileSync(`node_modules/${name}/package.json`)).version;

const audio = Buffer.concat(Array(60).fill(Buffer.concat([Buffer.from([0xff, 0xfb, 0x90, 0x00]), Buffer.alloc(413)])));
const field = (text, length) => Buffer.concat([Buffer.from(text, 'latin1'), Buffer.alloc(length)]).subarray(0, length);
const id3v1 = (comment) => Buffer.concat([
  field('TAG', 3), field('Old title', 30), field('Old artist', 30), field('Old album', 30), field('1971', 4), field(comment, 30),
  Buffer.from([17]),
]);
const frame = (id, text) => {
  const body = Buffer.from('\x03' + text);
  return Buffer.concat([Buffer.from(id), Buffer.from([0, 0, 0, body.length, 0, 0]), body]);
};
const body = Buffer.concat([frame('TIT2', 'New title'), frame('TPE1', 'New artist'), frame('TDRC', '2003'), frame('TRCK', '12/20')]);
const id3v2 = Buffer.concat([Buffer.from([0x49, 0x44, 0x33, 4, 0, 0, 0, 0, 0, body.length]), body]); // body is under 128 bytes

const both = Buffer.concat([id3v2, audio, id3v1('short'.padEnd(28, '\0') + '\0\x07')]);
const comment30 = Buffer.concat([audio, id3v1('a comment of thirty letters xy')]);
const read = async (library, bytes) => {
  writeFileSync('a.mp3', bytes);
  return (await library.parseFile('a.mp3')).common;
};

let asDescribed = true;
console.log('ID3v2: "New title", 2003, track 12 of 20. ID3v1: "Old title", 1971, track 7');
for (const [name, library] of [['old', older], ['new', newer]]) {
  const { title, year, date, track } = await read(library, both);
  console.log(`  music-metadata ${version(name)}: "${title}", year ${year}, date ${date}, track ${track.no} of ${track.of}`);
  asDescribed &&= title === 'New title' && year === 1971 && date === '2003' && track.no === 7 && track.of === 20;
}
console.log('ID3v1 only, comment "a comment of thirty letters xy", no track number');
for (const [name, library, number] of [['old', older, 121], ['new', newer, null]]) {
  const { track, comment } = await read(library, comment30);
  console.log(`  music-metadata ${version(name)}: track ${track.no}, comment "${comment[0].text ?? comment[0]}"`);
  asDescribed &&= track.no === number;
}
console.log(asDescribed ? 'as described: ID3v1 beats ID3v2; 3.6.1 makes a track number of a letter' : 'CHANGED');
process.exit(asDescribed ? 0 : 1);
JS
node run.mjs
