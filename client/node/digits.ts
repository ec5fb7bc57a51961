// A softmax regression as hfopt wants a model: loss, gradient and Gauss-Newton product, each a sum over examples. theta is a matrix W, one
// row of weights for each input. In formulas: z = x W, p = softmax(z), t the one-hot label, loss = -log p[label].
import { readFileSync } from "node:fs";

const inputs = 64 + 1; // pixels, and 1 for the bias
const classes = 10;
export const trainingExamples = 1400;
export const heldOutExamples = 397;
const dataSeed = 1n; // of the examples' order
export const numParameters = inputs * classes;
export const signature = "softmax regression 64-10, digits images, 1400 + 397, seed 1";

/** The generator of proto/testdata/shuffle.json. */
export function splitMix64(seed: bigint): () => bigint {
  const wrap = (n: bigint) => BigInt.asUintN(64, n);
  return () => {
    seed = wrap(seed + 0x9e3779b97f4a7c15n);
    let z = seed;
    z = wrap((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n);
    z = wrap((z ^ (z >> 27n)) * 0x94d049bb133111ebn);
    return z ^ (z >> 31n);
  };
}

/** 0 .. n-1 in the order that the seed gives. */
export function shuffled(seed: bigint, n: number): number[] {
  const next = splitMix64(seed);
  const order = Array.from({ length: n }, (_, i) => i);
  for (let i = n - 1; i > 0; i--) {
    const j = Number((next() * BigInt(i + 1)) >> 64n);
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

/** The data of an array of bytes, which follows magic and version (8 bytes), the length of a description (2) and that. */
function readNpy(path: string): Uint8Array {
  const file = readFileSync(path);
  return file.subarray(10 + file.readUInt16LE(8));
}

export interface Example {
  x: Float64Array; // pixels in 0..1, then 1
  label: number;
}

/** Training examples and held-out ones. */
export function loadDigits(folder: string): { training: Example[]; heldOut: Example[] } {
  const images = readNpy(`${folder}/images.npy`);
  const labels = readNpy(`${folder}/labels.npy`);
  const read = (first: number, count: number, seed: bigint) =>
    shuffled(seed, count).map((i) => {
      const pixels = images.subarray((first + i) * (inputs - 1), (first + i + 1) * (inputs - 1));
      return { x: Float64Array.of(...Array.from(pixels, (pixel) => pixel / 16), 1), label: labels[first + i] };
    });
  return { training: read(0, trainingExamples, dataSeed), heldOut: read(trainingExamples, heldOutExamples, dataSeed + 1n) };
}

/** Uniform in +-sqrt(6 / (inputs + outputs)), biases 0 (Glorot & Bengio 2010). */
export function initialParameters(seed: bigint): Float64Array {
  const next = splitMix64(seed);
  const bound = Math.sqrt(6 / (inputs - 1 + classes));
  return new Float64Array(numParameters).map((_, i) =>
    i < (inputs - 1) * classes ? bound * (2 * Number(next() >> 11n) * 2 ** -53 - 1) : 0);
}

/** z. */
function outputs(theta: ArrayLike<number>, x: Float64Array): Float64Array {
  const z = new Float64Array(classes);
  for (let k = 0, i = 0; k < inputs; k++) {
    for (let c = 0; c < classes; c++) z[c] += x[k] * theta[i++];
  }
  return z;
}

/** p and the example's loss. */
function predict(theta: ArrayLike<number>, { x, label }: Example): { p: Float64Array; loss: number } {
  const z = outputs(theta, x);
  const highest = Math.max(...z);
  const p = z.map((value) => Math.exp(value - highest));
  const sum = p.reduce((a, b) => a + b);
  return { p: p.map((value) => value / sum), loss: Math.log(sum) + highest - z[label] };
}

export function loss(theta: ArrayLike<number>, examples: Example[]): { loss: number; errors: number } {
  const total = { loss: 0, errors: 0 };
  for (const example of examples) {
    const { p, loss } = predict(theta, example);
    total.loss += loss;
    if (p[example.label] < Math.max(...p)) total.errors++;
  }
  return total;
}

/** Also the sum of the examples' squared gradients. An example's gradient is the outer product of x and p - t. */
export function gradient(theta: ArrayLike<number>, examples: Example[]) {
  const total = { loss: 0, gradient: new Float64Array(numParameters), squares: new Float64Array(numParameters) };
  for (const example of examples) {
    const { p: d, loss } = predict(theta, example);
    total.loss += loss;
    d[example.label] -= 1;
    for (let k = 0, i = 0; k < inputs; k++) {
      for (let c = 0; c < classes; c++, i++) {
        const g = example.x[k] * d[c];
        total.gradient[i] += g;
        total.squares[i] += g * g;
      }
    }
  }
  return total;
}

/** G v = sum of J' H J v, with H = diag(p) - p p' (Schraudolph 2002). J v is simple, because z is linear in theta. */
export function product(theta: ArrayLike<number>, v: ArrayLike<number>, examples: Example[]): Float64Array {
  const total = new Float64Array(numParameters);
  for (const example of examples) {
    const { p } = predict(theta, example);
    const jv = outputs(v, example.x);
    const mean = jv.reduce((sum, value, c) => sum + p[c] * value, 0);
    const hjv = jv.map((value, c) => p[c] * (value - mean));
    for (let k = 0, i = 0; k < inputs; k++) {
      for (let c = 0; c < classes; c++) total[i++] += example.x[k] * hjv[c];
    }
  }
  return total;
}

/** The sampling rule, for a data set of n examples. */
export function indices(shard: number, shards: number, begin: number, count: number, n: number): number[] {
  if (shard >= shards) throw new RangeError(`there is no shard ${shard} of ${shards}`);
  const low = Math.floor((shard * n) / shards);
  const size = Math.floor(((shard + 1) * n) / shards) - low;
  if (count > size || (count > 0 && begin >= size)) throw new RangeError(`a window of ${count} from ${begin} does not fit into a shard of ${size}`);
  return Array.from({ length: count }, (_, j) => low + ((begin + j) % size));
}
