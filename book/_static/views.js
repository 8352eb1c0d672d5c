// Views to play with: the loss mask, a rollout, the best policy at any beta. Each takes the place of a still view that the
// page was written with, and shows numbers from the run that made the page. Texts enter as text, never as HTML.
"use strict";

{
  // --- What all of them are made of ------------------------------------------------------------------------

  function element(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function choice(label, names, changed) {
    const box = element("select", {}, ...names.map((name, i) => element("option", { value: i }, name)));
    box.addEventListener("change", changed);
    return [element("label", {}, `${label} `, box), () => Number(box.value)];
  }

  function slider(label, largest, value, changed) {
    const bar = element("input", { type: "range", min: 0, max: largest, value, step: 1 });
    bar.addEventListener("input", changed);
    return [element("label", {}, `${label} `, bar), bar];
  }

  const signed = (value) => (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(3);
  const plain = (value) => (value < 0 ? "\u2212" : "") + Math.abs(value).toFixed(3);
  const named = (token) => ({ " ": "(space)", "\n": "(new line)" })[token] ?? token;

  // A row of tokens to walk along, by the slider or by a click; `look(i)` says what is to be said of token i.
  function walk(look) {
    const row = element("p", { class: "token-view view-tokens" });
    const said = element("div", { class: "view-said", "aria-live": "polite" });
    const [label, bar] = slider("Token", 0, 0, show);
    function show() {
      for (const token of row.children) token.removeAttribute("aria-current");
      row.children[bar.value]?.setAttribute("aria-current", "true");
      bar.setAttribute("aria-valuetext", row.children[bar.value]?.textContent ?? "");
      said.replaceChildren(...look(Number(bar.value)).map((line) => element("p", {}, line)));
    }
    row.addEventListener("click", (event) => {
      const i = [...row.children].indexOf(event.target);
      if (i >= 0) { bar.value = i; show(); }
    });
    // Show other tokens, each with a class or a colour
    function fill(tokens, dress, start) {
      row.replaceChildren(...tokens.map((token, i) => {
        const made = element("span", token.startsWith("<|") ? { class: "view-special" } : {}, token);
        dress(made, i);
        return made;
      }));
      bar.max = tokens.length - 1;
      bar.value = Math.min(start ?? bar.value, bar.max);
      show();
    }
    return { parts: [row, label, said], fill };
  }

  // Blue and solid above zero, orange and dashed below, the deeper the further from it.
  function shade(token, value, largest) {
    const colour = value > 0 ? "0, 114, 178" : "213, 94, 0";
    token.style.background = `rgba(${colour}, ${(0.55 * Math.abs(value)) / (largest || 1)})`;
    token.style.borderBottom = value === 0 ? "2px dotted" : `2px ${value > 0 ? "solid" : "dashed"} rgb(${colour})`;
  }

  const greatest = (values) => Math.max(...values.map((value) => Math.abs(value ?? 0)));

  // --- The loss mask ---------------------------------------------------------------------------------------

  function maskView({ examples }) {
    const models = Object.keys(examples[0].surprise);
    const [pick, example] = choice("Conversation", examples.map(({ name }) => name), () => refill(0));
    const [paint, colour] = choice("Colour", ["what is graded", ...models.map((name) => `surprise, ${name}`)], () => refill());
    const row = walk((i) => {
      const { tokens, ids, labels, surprise } = examples[example()];
      const graded = labels[i] >= 0;
      const lines = [`Token ${i}: ${named(tokens[i])}, id ${ids[i]}, label ${labels[i]}: ` + (graded
        ? `graded. It is what the model should have said after token ${i - 1}, ${named(tokens[i - 1])}.` : "read, and not graded.")];
      if (i > 0) {
        const each = models.map((name) => `${surprise[name][i].toFixed(2)} nats (${name})`);
        lines.push(`How much it surprises: ${each.join(", ")}.${graded ? "" : " The loss does not count it."}`);
      }
      return lines;
    });
    function refill(start) {
      const { tokens, labels, surprise } = examples[example()];
      const values = colour() ? surprise[models[colour() - 1]] : null;
      row.fill(tokens, (token, i) => {
        if (labels[i] >= 0) token.classList.add("view-graded");
        if (values && i) token.style.background = `rgba(213, 94, 0, ${Math.min(0.6, values[i] / 8)})`;
        else if (values) token.style.background = "none";
      }, start);
    }
    refill(0);
    return [element("div", { class: "view-controls" }, pick, paint), ...row.parts];
  }

  // --- A rollout -------------------------------------------------------------------------------------------

  function rolloutView({ answers, gamma, lam }) {
    const columns = ["advantage", "reward", "value", "log-ratio", "log-probability"];
    const [pick, answer] = choice("Answer", answers.map(({ name }) => name), () => refill(0));
    const [paint, colour] = choice("Colour", columns, () => refill());
    const column = (a, name) => name === "log-ratio" ? a["log-probability"].map((p, i) => p - a.reference[i]) : a[name];
    const row = walk((i) => {
      const a = answers[answer()];
      const last = i === a.tokens.length - 1;
      const [p, ref] = [a["log-probability"][i], a.reference[i]];
      const [v, next, later] = [a.value[i], last ? 0 : a.value[i + 1], last ? 0 : a.advantage[i + 1]];
      const [r, delta] = [a.reward[i], a.reward[i] + gamma * next - v];
      return [
        `Token ${i}: ${named(a.tokens[i])}. The policy gave it ${(100 * Math.exp(p)).toFixed(1)}%, the reference ${(100 * Math.exp(ref)).toFixed(1)}%.`,
        `Reward: \u2212\u03b2 (log \u03c0 \u2212 log \u03c0ref)${last ? " + score" : ""} = \u2212${a.beta.toFixed(3)} \u00b7 (${plain(p)} \u2212 ${plain(ref)})` +
          `${last ? ` ${a.score < 0 ? "\u2212" : "+"} ${Math.abs(a.score).toFixed(3)}` : ""} = ${signed(r)}`,
        `Surprise: \u03b4 = r + \u03b3V\u2032 \u2212 V = ${plain(r)} + ${plain(gamma * next)} \u2212 ${plain(v)} = ${signed(delta)}`,
        `Advantage: \u03b4 + \u03b3\u03bbA\u2032 = ${plain(delta)} + ${gamma * lam} \u00b7 ${plain(later)} = ${signed(a.advantage[i])}. ` +
          `Return: A + V = ${signed(a.advantage[i] + v)}`,
      ].map((line) => line.replaceAll("\u2212 \u2212", "+ ").replaceAll("+ \u2212", "\u2212 "));
    });
    function refill(start) {
      const a = answers[answer()], values = column(a, columns[colour()]);
      row.fill(a.tokens, (token, i) => shade(token, values[i], greatest(values)), start);
    }
    refill(0);
    return [element("div", { class: "view-controls" }, pick, paint), ...row.parts];
  }

  // --- The best policy at any beta -------------------------------------------------------------------------

  function betaView({ betas, start, words, rewards, reference, best, reward, kl }) {
    const [label, bar] = slider("\u03b2", betas.length - 1, start, show);
    const said = element("p", { class: "view-said", "aria-live": "polite" });
    const bars = words.map(() => element("div", { class: "view-bar" }));
    const shares = words.map(() => element("span", {}));
    const rows = words.map((word, i) => element("tr", {}, element("th", { scope: "row" }, word), element("td", {}, signed(rewards[i]).slice(0, -2)),
      element("td", {}, (100 * reference[i]).toFixed(1) + "%"), element("td", { class: "view-share" }, shares[i], bars[i])));
    const largest = Math.max(...best.flat());
    const head = ["word", "reward", "reference", "best policy at this \u03b2"].map((name) => element("th", { scope: "col" }, name));
    const table = element("table", { class: "table view-table" },
      element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
    function show() {
      const i = Number(bar.value);
      bar.setAttribute("aria-valuetext", betas[i].toFixed(2));
      words.forEach((_, w) => {
        bars[w].style.width = `${(100 * best[i][w]) / largest}%`;
        shares[w].textContent = `${(100 * best[i][w]).toFixed(1)}%`;
      });
      said.textContent = `\u03b2 = ${betas[i].toFixed(2)}: mean reward ${signed(reward[i]).slice(0, -1)}, ` +
        `${kl[i].toFixed(2)} nats from the reference. All other words together: ${(100 * (1 - best[i].reduce((a, b) => a + b, 0))).toFixed(1)}%.`;
    }
    show();
    return [element("div", { class: "view-controls" }, label), said, table];
  }

  // --- Put them in -----------------------------------------------------------------------------------------

  const views = { mask: maskView, rollout: rolloutView, beta: betaView };
  function bring() {
    for (const place of document.querySelectorAll("div.interactive:not([data-live])")) {
      place.dataset.live = "yes";
      place.replaceChildren(...views[place.dataset.kind](JSON.parse(place.dataset.values)));
    }
  }
  // A page is still being read; a notebook has long been there, and puts its outputs in a little later
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", bring);
  else for (const wait of [0, 300, 1500]) setTimeout(bring, wait);
}
