// The page "Talk to the models": one question, several models, side by side. What is typed and what the models
// write enters the page as text, never as HTML.
"use strict";

const models = {}; // what the files of the models put in, packed
const folder = new URL("models/", document.currentScript.src);
const loading = {};

// Load a model's file, once.
function load(name) {
  loading[name] ??= new Promise((resolve, reject) => {
    const tag = document.createElement("script");
    tag.src = new URL(`${name}.js`, folder);
    tag.onload = () => resolve(unpack(models[name]));
    tag.onerror = () => {
      delete loading[name];
      reject(new Error(`The file ${tag.src} could not be loaded. Build the book, or reload the page.`));
    };
    document.head.append(tag);
  });
  return loading[name];
}

// The nearest text in the models' 65 characters, as the tokenizer's clean().
function clean(text) {
  const spell = (letters) => Array.from(letters, (letter) => SUBSTITUTES[letter] ?? letter).join("");
  const plain = spell(spell(text).normalize("NFKD").replace(/\p{M}/gu, ""));
  return Array.from(plain, (letter) => (TOKENS.indexOf(letter) < 0 ? "?" : letter)).join("");
}

function encode(text) {
  return Array.from(text, (letter) => TOKENS.indexOf(letter));
}

const special = (name) => TOKENS.indexOf(`<|${name}|>`);

// What a model reads before it writes: the chat template, which the base model does not know.
function promptOf(name, question) {
  if (name === "base") return encode(question + "\n");
  return [special("user"), ...encode(question), special("assistant")];
}

// A seed for this question: with one seed for all, models that hardly heed the question would write the same again.
function mixed(seed, question) {
  return encode(question).reduce((sum, token) => (Math.imul(sum, 31) + token) >>> 0, seed);
}

// Ask one model; hand each new piece of text to `show`, and return the whole.
async function answer(name, question, { temperature, seed, signal, show }) {
  const model = await load(name);
  const options = { temperature, stop: special("end"), random: seeded(mixed(seed, question)) };
  let text = "", paused = performance.now();
  for (const token of write(model, promptOf(name, question), options)) {
    if (token === special("end")) return { text, ended: true };
    text += TOKENS[token];
    show(text);
    // Let the page breathe, and the other models write
    if (performance.now() - paused > 15) {
      await new Promise((resolve) => setTimeout(resolve));
      paused = performance.now();
    }
    if (signal.aborted) break;
  }
  return { text, ended: false };
}

// The reward model's opinion, which is asked for what is there, with an end.
async function judge(question, text) {
  const tokens = [...promptOf("reward", question), ...encode(text.replace(/<\|[a-z]+\|>/g, "")), special("end")];
  return score(await load("reward"), tokens.slice(0, 256));
}

function begin(form) {
  const results = form.parentElement.querySelector(".talk-answers");
  const status = form.querySelector("[role=status]");
  const [ask, stop] = form.querySelectorAll("button");
  let running = null;

  form.elements.temperature.addEventListener("input", () => {
    form.querySelector("output").value = form.elements.temperature.value;
  });
  stop.addEventListener("click", () => running?.abort());
  // Enter asks, with Shift it begins a new line
  form.elements.question.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!ask.disabled) form.requestSubmit();
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const question = clean(form.elements.question.value.trim());
    const chosen = [...form.querySelectorAll("[name=model]:checked")];
    if (!question || !chosen.length) {
      results.replaceChildren();
      status.textContent = question ? "Choose at least one model." : "Ask something first.";
      return;
    }
    running = new AbortController();
    ask.disabled = true;
    stop.disabled = false;
    const read = question === form.elements.question.value.trim() ? "" : ` The models know 65 characters, and were asked: ${question}`;
    status.textContent = "The models write ..." + read;
    results.replaceChildren();
    const cards = chosen.map((box) => card(results, box));
    try {
      await Promise.all(cards.map(async (place) => {
        const [text, note] = place.querySelectorAll("p");
        const show = (so_far) => { text.textContent = so_far; };
        const settings = { temperature: Number(form.elements.temperature.value), signal: running.signal, show,
                           seed: Number(form.elements.seed.value) };
        note.textContent = "...";
        const said = await answer(place.dataset.model, question, settings);
        const points = await judge(question, said.text);
        note.textContent = `reward model: ${points.toFixed(2)}${said.ended ? "" : ", cut off: it did not end"}`;
      }));
      status.textContent = (running.signal.aborted ? "Stopped." : "Done.") + read;
    } catch (error) {
      status.textContent = error.message;
    } finally {
      ask.disabled = false;
      stop.disabled = true;
    }
  });
}

// An empty card for a model's answer, in the order of the boxes.
function card(results, box) {
  const place = document.createElement("div");
  place.className = "talk-card";
  place.dataset.model = box.value;
  const name = document.createElement("h3");
  name.textContent = box.parentElement.textContent.trim();
  place.append(name, document.createElement("p"), document.createElement("p"));
  place.querySelector("p").className = "talk-text";
  place.lastChild.className = "talk-note";
  results.append(place);
  return place;
}

document.querySelectorAll("form.talk").forEach(begin);
