// What scrolls within itself on a narrow screen can be reached and scrolled by keyboard.
"use strict";

function reachable() {
  for (const place of document.querySelectorAll(".bd-article :is(table, pre, div.math)")) {
    if (place.scrollWidth > place.clientWidth) place.tabIndex = 0;
    else if (place.tabIndex === 0) place.removeAttribute("tabindex");
  }
}

addEventListener("load", reachable);
addEventListener("resize", reachable);
