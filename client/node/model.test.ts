import assert from "node:assert";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { gradient, loadDigits, loss, numParameters, product, window } from "./model.js";

const root = decodeURI(new URL("../../..", import.meta.url).pathname);
const data = loadDigits(`${root}/client/models/digits`);

/** Numbers in -1..1, others for another seed. */
const direction = (seed: number) => new Float64Array(numParameters).map((_, i) => Math.sin((i + 1) * (seed + 1.7)));
const theta = direction(0);
const along = (v: Float64Array, step: number) => theta.map((value, i) => value + step * v[i]);
const dot = (a: Float64Array, b: Float64Array) => a.reduce((sum, value, i) => sum + value * b[i], 0);

function near(actual: number, expected: number, tolerance: number): void {
  assert.ok(Math.abs(actual - expected) <= tolerance, `${actual} instead of ${expected}`);
}

test("takes windows as published", () => {
  const { windows } = JSON.parse(readFileSync(`${root}/proto/testdata/windows.json`, "utf8"));
  for (const { examples, shard, shards, begin, count, indices } of windows) {
    assert.deepStrictEqual(window(Array.from({ length: examples }, (_, i) => i), shard, shards, begin, count), indices);
  }
});

test("refuses windows that do not exist", () => {
  for (const [shard, shards, begin, count] of [[0, 0, 0, 1], [2, 2, 0, 1], [1, 2, 5, 1], [1, 2, 0, 6], [1, 2, 2 ** 63, 1]]) {
    assert.throws(() => window([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], shard, shards, begin, count), RangeError);
  }
});

// That the files' order is mixed: else windows of them would not be samples.
test("has both classes in every window", () => {
  assert.deepStrictEqual([data.training.length, data.heldOut.length], [1400, 397]);
  for (let begin = 0; begin < 1400; begin += 100) {
    near(data.training.slice(begin, begin + 100).reduce((sum, { t }) => sum + t, 0), 50, 10);
  }
});

test("the loss is that of the formula, also far away", () => {
  const [example] = data.training;
  const scaled = (z: number) => new Float64Array(numParameters).fill(0).map((_, i) => (i === numParameters - 1 ? z : 0));
  for (const [z, t] of [[0, 0], [2, 0], [2, 1], [-3, 1]]) {
    near(loss(scaled(z), [{ ...example, t }]).loss, Math.log(1 + Math.exp(z)) - t * z, 1e-15);
  }
  assert.deepStrictEqual(loss(scaled(1000), [{ ...example, t: 0 }]), { loss: 1000, errors: 1 });
  assert.deepStrictEqual(loss(scaled(-1000), [{ ...example, t: 0 }]), { loss: 0, errors: 0 });
});

test("the gradient is the derivative of the loss", () => {
  const examples = data.training.slice(100, 130);
  const g = gradient(theta, examples);
  const h = 1e-5;
  for (const seed of [1, 2, 3]) {
    const v = direction(seed);
    const difference = (loss(along(v, h), examples).loss - loss(along(v, -h), examples).loss) / (2 * h);
    near(difference, dot(g, v), 1e-6 * Math.sqrt(dot(g, g) * dot(v, v)));
  }
});

// z is linear in theta, so that the Gauss-Newton matrix is the Hessian.
test("the product is the derivative of the gradient", () => {
  const examples = data.heldOut.slice(0, 20);
  const v = direction(1);
  const h = 1e-5;
  const [up, down, gv] = [gradient(along(v, h), examples), gradient(along(v, -h), examples), product(theta, v, examples)];
  assert.ok(dot(gv, gv) > 0);
  gv.forEach((value, i) => near((up[i] - down[i]) / (2 * h), value, 1e-7 * Math.sqrt(dot(gv, gv))));
});
