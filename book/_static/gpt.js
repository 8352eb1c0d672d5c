// The GPT of chapter 1 in plain JavaScript: it reads one token at a time and says how likely each next one is.
// The weights are PyTorch's, rounded to whole numbers of 20 bits with a scale for every sixty-four.
"use strict";

class GPT {
  // shape: {vocabulary, context, layers, heads, width}. weights: by PyTorch's names, row after row.
  constructor(shape, weights) {
    Object.assign(this, shape);
    this.weights = weights;
    this.size = this.width / this.heads; // features of one head
    this.forget();
  }

  // Start a new text: throw the keys and values of the old one away.
  forget() {
    const layers = Array.from({ length: this.layers });
    this.keys = layers.map(() => []);
    this.values = layers.map(() => []);
    this.length = 0; // tokens read so far
  }

  // Read a token; return the features that the last layer leaves at its place.
  read(token) {
    if (this.length >= this.context) throw new RangeError(`a text has at most ${this.context} tokens`);
    let x = norm(this.weights["embedding.weight"].subarray(token * this.width, (token + 1) * this.width));
    for (let layer = 0; layer < this.layers; layer++) {
      x = add(x, this.attention(layer, norm(x)));
      x = add(x, this.mlp(layer, norm(x)));
    }
    this.length += 1;
    return norm(x);
  }

  // Look back at the tokens so far, each head with its own questions.
  attention(layer, x) {
    const { heads, size } = this;
    const qkv = product(this.weights[`blocks.${layer}.attention.qkv.weight`], x);
    const part = (i) => qkv.subarray(i * size, (i + 1) * size); // queries, keys, values of all heads in turn
    const mixed = new Float32Array(this.width);
    const keys = [], values = [];
    for (let head = 0; head < heads; head++) {
      keys.push(rotate(norm(part(heads + head)), this.length));
      values.push(part(2 * heads + head));
    }
    this.keys[layer].push(keys);
    this.values[layer].push(values);
    for (let head = 0; head < heads; head++) {
      const query = rotate(norm(part(head)), this.length);
      const scores = this.keys[layer].map((key) => dot(query, key[head]) / Math.sqrt(size));
      softmax(scores).forEach((share, t) => {
        const value = this.values[layer][t][head];
        for (let i = 0; i < size; i++) mixed[head * size + i] += share * value[i];
      });
    }
    return product(this.weights[`blocks.${layer}.attention.out.weight`], mixed);
  }

  // Two matrices, and max(0, x) squared between them.
  mlp(layer, x) {
    const hidden = product(this.weights[`blocks.${layer}.mlp.up.weight`], x);
    const active = hidden.map((h) => Math.max(0, h) ** 2);
    return product(this.weights[`blocks.${layer}.mlp.down.weight`], active);
  }

  // The logits of the token that comes next, from what `read` returned.
  logits(features) {
    return product(this.weights["head.weight"], features);
  }
}

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

// A matrix, row after row, times a vector.
function product(matrix, x) {
  const out = new Float32Array(matrix.length / x.length);
  for (let row = 0; row < out.length; row++) out[row] = dot(matrix.subarray(row * x.length, (row + 1) * x.length), x);
  return out;
}

function add(a, b) {
  return a.map((value, i) => value + b[i]);
}

// Mean 0 and variance 1.
function norm(x) {
  const mean = x.reduce((sum, value) => sum + value, 0) / x.length;
  const variance = x.reduce((sum, value) => sum + (value - mean) ** 2, 0) / x.length;
  return x.map((value) => (value - mean) / Math.sqrt(variance + 1e-5));
}

// RoPE: turn each pair of features by an angle that grows with the position.
function rotate(x, position) {
  const out = new Float32Array(x.length);
  for (let i = 0; i < x.length; i += 2) {
    const angle = position * 10000 ** (-i / x.length);
    out[i] = x[i] * Math.cos(angle) - x[i + 1] * Math.sin(angle);
    out[i + 1] = x[i] * Math.sin(angle) + x[i + 1] * Math.cos(angle);
  }
  return out;
}

function softmax(scores) {
  const most = Math.max(...scores);
  const powers = Array.from(scores, (score) => Math.exp(score - most));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers.map((power) => power / total);
}

// Draw from the softmax of logits / temperature, or take the likeliest at temperature 0. As in the book, clocks race:
// each rings at the rate of its token's probability. random() is from 0 to below 1.
function draw(logits, temperature, random) {
  if (temperature === 0) return logits.indexOf(Math.max(...logits));
  const times = softmax(logits.map((logit) => logit / temperature)).map((share) => -Math.log(1 - random()) / share);
  return times.indexOf(Math.min(...times));
}

// Read a prompt's tokens, then write on, token by token, until `stop` or the context is full.
function* write(model, prompt, { temperature = 1, most = 96, stop, random = Math.random }) {
  model.forget();
  let features;
  for (const token of prompt) features = model.read(token);
  for (let n = 0; n < most && model.length < model.context; n++) {
    const token = draw(model.logits(features), temperature, random);
    yield token;
    if (token === stop) return;
    features = model.read(token);
  }
}

// The reward model's score of an answer: its head, read at the last token.
function score(judge, tokens) {
  judge.forget();
  let features;
  for (const token of tokens) features = judge.read(token);
  const raw = dot(judge.weights["score.weight"], features) + judge.weights["score.bias"][0];
  return (raw - judge.weights["shift"][0]) / judge.weights["scale"][0];
}

// A random number generator that a seed decides (mulberry32, by Tommy Ettinger).
function seeded(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

// Make a model of what the book's build has written: {shape, tensors: [[name, groups, size], ...], data}.
// data, in base64: for each tensor a scale per group, then whole numbers of 20 bits, which times the scale are
// the weights: first the upper 16 bits of each, then the lower four, two numbers to a byte.
function unpack({ shape, tensors, data }) {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const weights = {};
  let at = 0;
  for (const [name, groups, size] of tensors) {
    const count = groups * size;
    const scales = new Float32Array(bytes.buffer.slice(at, (at += 4 * groups)));
    const upper = new Int16Array(bytes.buffer.slice(at, (at += 2 * count)));
    const lower = bytes.subarray(at, (at += Math.ceil(count / 2)));
    weights[name] = Float32Array.from(upper, (number, i) => {
      const four = (lower[i >> 1] >> (4 * (i & 1))) & 15;
      return (number * 16 + four) * scales[Math.floor(i / size)];
    });
  }
  return new GPT(shape, weights);
}
