#!/usr/bin/env bash
# music-metadata 3.6.1 (npm): MPEG 2.5 files have no duration and no bitrate.
#
# Expected: three MP3 files of constant bitrate, one each of MPEG 1, MPEG 2 and MPEG 2.5 (the variant for 8, 11.025 and 12 kHz that
# speech recordings use), are all given a sample rate, a bitrate and a duration.
# Happens: the MPEG 2.5 file has none of the three. No error is raised, so a music server stores a track without a length.
# The frame header of MPEG 2.5 differs in one bit of the 11 or 12 sync bits. 12.1.0 reads the same file.
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

// 120 silent frames of layer III: header, then zeros up to the frame's length in bytes.
const frames = (header, length) =>
  Buffer.concat(Array(120).fill(Buffer.concat([Buffer.from(header), Buffer.alloc(length - 4)])));
const files = {
  'MPEG 1, 44100 Hz, 128 kbit/s': [frames([0xff, 0xfb, 0x90, 0x00], 417), 44100, 128000],
  'MPEG 2, 22050 Hz, 32 kbit/s': [frames([0xff, 0xf3, 0x40, 0x00], 104), 22050, 32000],
  'MPEG 2.5, 11025 Hz, 32 kbit/s': [frames([0xff, 0xe3, 0x40, 0x00], 208), 11025, 32000],
};
const read = async (library, name) => {
  const { sampleRate, bitrate, duration } = (await library.parseFile(name, { duration: true })).format;
  return [sampleRate, bitrate, duration?.toFixed(2)];
};
let asDescribed = true;
for (const [kind, [bytes, rate, bits]] of Object.entries(files)) {
  writeFileSync('a.mp3', bytes);
  console.log(kind);
  const [old, recent] = [await read(older, 'a.mp3'), await read(newer, 'a.mp3')];
  for (const [name, seen] of [['old', old], ['new', recent]]) {
    console.log(`  music-metadata ${version(name)}: sample rate ${seen[0]}, bitrate ${seen[1]}, duration ${seen[2]}`);
  }
  const right = (seen) => seen[0] === rate && seen[1] === bits && seen[2] > 0;
  const nothing = old.every((value) => value === undefined);
  asDescribed &&= right(recent) && (kind.startsWith('MPEG 2.5') ? nothing : right(old));
}
console.log(asDescribed ? 'as described: 3.6.1 finds nothing in the MPEG 2.5 file' : 'CHANGED');
process.exit(asDescribed ? 0 : 1);
JS
node run.mjs
