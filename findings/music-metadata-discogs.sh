#!/usr/bin/env bash
# music-metadata 3.6.1 and 12.1.0 (npm): what Discogs taggers write as TXXX beats the standard ID3v2 frames.
#
# Expected: TDRC (recording time) and TPE1 (artist) are the year and the artist of a song. User-defined TXXX frames are notes of the
# tagger that wrote them.
# Happens: TXXX "DISCOGS_RELEASED" becomes year and date although TDRC is there: a song of 2001 on a release of 2009 is of 2009.
# Without TPE1, the artist is that of TXXX "DISCOGS_ARTISTS". A program that groups songs by year splits an album of which only some
# songs have the frame.
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
const frame = (id, text) => {
  const body = Buffer.from('\x03' + text);
  return Buffer.concat([Buffer.from(id), Buffer.from([0, 0, 0, body.length, 0, 0]), body]);
};
const tagged = (...frames) => {
  const body = Buffer.concat(frames);
  return Buffer.concat([Buffer.from([0x49, 0x44, 0x33, 4, 0, 0, 0, 0, body.length >> 7, body.length & 127]), body, audio]);
};
const both = tagged(frame('TIT2', 'Song'), frame('TPE1', 'Artist'), frame('TDRC', '2001'), frame('TXXX', 'DISCOGS_RELEASED\x002009'));
const noArtist = tagged(frame('TIT2', 'Song'), frame('TXXX', 'DISCOGS_ARTISTS\0Discogs artist'));

let asDescribed = true;
for (const [name, library] of [['old', older], ['new', newer]]) {
  writeFileSync('a.mp3', both);
  const { year, date, artist } = (await library.parseFile('a.mp3')).common;
  writeFileSync('b.mp3', noArtist);
  const second = (await library.parseFile('b.mp3')).common;
  console.log(`music-metadata ${version(name)}: TDRC 2001 and DISCOGS_RELEASED 2009: year ${year}, date ${date}, artist ${artist}`);
  console.log(`  no TPE1, DISCOGS_ARTISTS "Discogs artist": artist ${second.artist}, artists ${JSON.stringify(second.artists)}`);
  asDescribed &&= year === 2009 && date === '2009' && artist === 'Artist' && second.artist === 'Discogs artist';
}
console.log(asDescribed ? 'as described: frames of Discogs taggers beat the standard ones' : 'CHANGED');
process.exit(asDescribed ? 0 : 1);
JS
node run.mjs
