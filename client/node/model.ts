// A logistic regression: is a handwritten digit 5 or more? For an example with inputs x and target t, z = x'theta, p = 1 / (1 + exp(-z)),
// loss = log(1 + exp(z)) - t z. That is convex: zeros will do to begin with. All is summed over examples, as hfopt wants it.
import { readFileSync } from "node:fs";

export const numParameters = 64 + 1; // a weight for each pixel, and for the 1 that follows them
export const modelSignature = "logistic regression on digits, 5 or more";
export type Example = { x: Float64Array; t: number };

/** In the files' order, which is mixed. Sorted data want shuffling: once, by all workers alike (vectors: proto/testdata/shuffle.json). */
export function loadDigits(folder: string): { training: Example[]; heldOut: Example[] } {
  const [images, labels] = ["images", "labels"].map((name) => readFileSync(`${folder}/${name}.npy`).subarray(128)); // after the header
  const examples = Array.from(labels, (label, i) => {
    const pixels = images.subarray(64 * i, 64 * (i + 1));
    return { x: Float64Array.of(...Array.from(pixels, (pixel) => pixel / 16), 1), t: label >= 5 ? 1 : 0 };
  });
  return { training: examples.slice(0, -397), heldOut: examples.slice(-397) };
}

function dot(a: Float64Array, b: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}
const probability = (theta: Float64Array, x: Float64Array) => 1 / (1 + Math.exp(-dot(x, theta)));

export function add(sum: Float64Array, factor: number, v: Float64Array): void {
  for (let i = 0; i < v.length; i++) sum[i] += factor * v[i];
}

export function loss(theta: Float64Array, examples: Example[]): { loss: number; errors: number } {
  const sums = { loss: 0, errors: 0 };
  for (const { x, t } of examples) {
    const z = dot(x, theta);
    sums.loss += Math.log1p(Math.exp(-Math.abs(z))) + Math.max(z, 0) - t * z; // without exp of a large number
    if (z > 0 !== t > 0) sums.errors++;
  }
  return sums;
}

export function gradient(theta: Float64Array, examples: Example[]): Float64Array {
  const sum = new Float64Array(numParameters);
  for (const { x, t } of examples) add(sum, probability(theta, x) - t, x);
  return sum;
}

/** G v. As z is linear in theta, the Gauss-Newton matrix G is the Hessian: the sum of p (1 - p) x x'. */
export function product(theta: Float64Array, v: Float64Array, examples: Example[]): Float64Array {
  const sum = new Float64Array(numParameters);
  for (const { x } of examples) {
    const p = probability(theta, x);
    add(sum, p * (1 - p) * dot(x, v), x);
  }
  return sum;
}

/** The sampling rule: the examples of a window of a shard. */
export function window<T>(data: T[], shard: number, shards: number, begin: number, count: number): T[] {
  const part = data.slice(Math.floor((shard * data.length) / shards), Math.floor(((shard + 1) * data.length) / shards));
  if (shard >= shards || count > part.length || (count > 0 && begin >= part.length)) {
    throw new RangeError(`shard ${shard} of ${shards}, of ${part.length} examples, has no window of ${count} from ${begin}`);
  }
  return [...part, ...part].slice(begin, begin + count);
}
