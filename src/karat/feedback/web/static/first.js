// Runs before anything is drawn, so that colours and panes do not jump when the page has loaded.
"use strict";
(() => {
  const root = document.documentElement;
  root.classList.replace("no-js", "js");
  const remembered = (name) => {
    try {
      return localStorage.getItem(name) ?? "";
    } catch {
      return "";
    }
  };
  const theme = remembered("karat:theme");
  if (["light", "dark", "contrast"].includes(theme)) root.dataset.theme = theme;
  const guide = remembered("karat:guide") || (innerWidth >= 1600 ? "open" : "closed");
  root.dataset.guide = innerWidth >= 1280 && guide === "open" ? "open" : "closed";
})();
