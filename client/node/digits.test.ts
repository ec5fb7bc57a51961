import assert from "node:assert";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { gradient, indices, initialParameters, loadDigits, loss, numParameters, product, shuffled, splitMix64 } from "./digits.js";

const root = new URL("../../../", import.meta.url);
const published = (name: string) => JSON.parse(readFileSync(new URL(`proto/testdata/${name}`, root), "utf8"));
const data = loadDigits(fileURLToPath(new URL("client/models/digits", root)));
const theta = initialParameters(1n);

/** A vector of numbers in -1..1. */
function direction(seed: bigint): Float64Array {
  const next = splitMix64(seed);
  return new Float64Array(numParameters).map(() => 2 * Number(next() >> 11n) * 2 ** -53 - 1);
}

const along = (v: Float64Array, step: number) => theta.map((value, i) => value + step * v[i]);
const dot = (a: Float64Array, b: Float64Array) => a.reduce((sum, value, i) => sum + value * b[i], 0);

function near(actual: number, expected: number, tolerance: number): void {
  assert.ok(Math.abs(actual - expected) <= tolerance, `${actual} instead of ${expected}`);
}

test("shuffles as published", () => {
  const vectors = published("shuffle.json");
  for (const { seed, next } of vectors.generator) {
    const generator = splitMix64(BigInt(seed));
    assert.deepStrictEqual(next.map(() => generator().toString()), next);
  }
  for (const { seed, n, order } of vectors.shuffle) assert.deepStrictEqual(shuffled(BigInt(seed), n), order);
});

test("takes windows as published", () => {
  for (const { examples, shard, shards, begin, count, indices: expected } of published("windows.json").windows) {
    assert.deepStrictEqual(indices(shard, shards, begin, count, examples), expected);
  }
});

test("the gradient is the derivative of the loss", () => {
  const examples = data.training.slice(100, 130);
  const { gradient: g } = gradient(theta, examples);
  const h = 1e-5;
  for (const seed of [0n, 1n, 2n]) {
    const v = direction(seed);
    const difference = (loss(along(v, h), examples).loss - loss(along(v, -h), examples).loss) / (2 * h);
    near(difference, dot(g, v), 1e-6 * Math.sqrt(dot(g, g) * dot(v, v)));
  }
});

// z is linear in theta, so that the Gauss-Newton matrix is the Hessian.
test("the product is the derivative of the gradient", () => {
  const examples = data.heldOut.slice(0, 20);
  const v = direction(1n);
  const h = 1e-5;
  const up = gradient(along(v, h), examples).gradient;
  const down = gradient(along(v, -h), examples).gradient;
  const gv = product(theta, v, examples);
  gv.forEach((value, i) => near((up[i] - down[i]) / (2 * h), value, 1e-7 * Math.sqrt(dot(gv, gv))));
});

test("squares are those of single examples", () => {
  const examples = data.training.slice(0, 10);
  const expected = new Float64Array(numParameters);
  for (const example of examples) gradient(theta, [example]).gradient.forEach((g, i) => (expected[i] += g * g));
  gradient(theta, examples).squares.forEach((square, i) => near(square, expected[i], 1e-12));
});
