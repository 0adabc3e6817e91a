// The licence of every package in regl-scatterplot.js, with its version. Two are copied into others' sources, where they stand in no list of dependencies.
import { readFileSync, readdirSync } from "node:fs"

const COPIED = ["node_modules/kdbush", "node_modules/simplify-js"]
const lock = JSON.parse(readFileSync("package-lock.json", "utf8")).packages
for (const [place, { dev, version, license }] of Object.entries(lock)) {
  if (!place || (dev && !COPIED.includes(place))) continue
  const file = readdirSync(place).find((name) => /^licen[cs]e/i.test(name))
  console.log(`${place.replace(/^.*node_modules\//, "")} ${version} (${license})\n\n${readFileSync(`${place}/${file}`, "utf8").trim()}\n\n${"-".repeat(80)}\n`)
}
