// What scrolls within itself on a narrow screen can be reached and scrolled by keyboard; on paper nothing is dark or folded.
"use strict";

function reachable() {
  for (const place of document.querySelectorAll(".bd-article :is(table, pre, div.math, figure, div.cell_output)")) {
    if (place.scrollWidth > place.clientWidth) place.tabIndex = 0;
    else if (place.tabIndex === 0) place.removeAttribute("tabindex");
  }
}

addEventListener("load", reachable);
addEventListener("resize", reachable);

const page = document.documentElement;
let before = null; // how the page was before it was printed

addEventListener("beforeprint", () => {
  const folded = [...document.querySelectorAll(".bd-article details:not([open])")];
  before ??= { theme: page.dataset.theme, folded };
  page.dataset.theme = "light";
  for (const part of folded) part.open = true;
});

addEventListener("afterprint", () => {
  page.dataset.theme = before.theme;
  for (const part of before.folded) part.open = false;
  before = null;
});
