// What every page has: the choice of colours, and a button that copies code.

import { remember } from "./remember.js";

const root = document.documentElement;

function themePicker() {
  const picker = document.getElementById("theme");
  if (!picker) return;
  picker.closest("label").hidden = false;
  picker.value = root.dataset.theme ?? "";
  picker.addEventListener("change", () => {
    if (picker.value) root.dataset.theme = picker.value;
    else delete root.dataset.theme;
    remember("karat:theme", picker.value);
  });
}

function textWithGhosts(node) {
  // what is copied holds the hidden characters' names, not nothing
  if (node.nodeType === Node.TEXT_NODE) return node.data;
  if (node.classList?.contains("ghost")) return `⟨${node.dataset.label}⟩`;
  return [...node.childNodes].map(textWithGhosts).join("");
}

function copyButtons() {
  for (const block of document.querySelectorAll(".code")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.setAttribute("aria-label", "Copy the code");
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(textWithGhosts(block.querySelector("pre")));
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(block.querySelector("pre"));
        button.textContent = "Press Ctrl+C";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    block.append(button);
  }
}

themePicker();
copyButtons();
