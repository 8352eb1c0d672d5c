// What scrolls within itself on a narrow screen can be reached and scrolled by keyboard; on paper nothing stays folded.
"use strict";

function reachable() {
  for (const place of document.querySelectorAll(".bd-article :is(table, pre, div.math, figure, div.cell_output)")) {
    if (place.scrollWidth > place.clientWidth) place.tabIndex = 0;
    else if (place.tabIndex === 0) place.removeAttribute("tabindex");
  }
}

addEventListener("load", reachable);
addEventListener("resize", reachable);

addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll(".bd-article details")) folded.open = true;
});
