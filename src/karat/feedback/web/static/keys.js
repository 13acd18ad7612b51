// Keys. Off in text boxes and while a window is open; never Backspace, never a chord of the browser.

import { remember } from "./remember.js";

const TYPING_MS = 1000; // of quiet after which letters are keys again

const TEXT_TYPES = new Set(["text", "number", "search", "email", "password", "url", "tel", ""]);

export function isText(node) {
  if (!node) return false;
  if (node.tagName === "TEXTAREA" || node.tagName === "SELECT" || node.isContentEditable) return true;
  return node.tagName === "INPUT" && TEXT_TYPES.has(node.getAttribute("type") ?? "");
}

function isOn() {
  try {
    return localStorage.getItem("karat:keys") !== "off";
  } catch {
    return true;
  }
}

function press(node) {
  // its key leads into a box that is open already: a second press must not hide what was written there
  const box = node.checked && node.dataset.opens ? document.getElementById(node.dataset.opens) : null;
  if (box) box.focus();
  else if (node.matches("textarea, input[type=number], select, div[tabindex]")) node.focus();
  else if (node.matches("summary")) {
    node.click();
    if (node.parentElement.open) node.parentElement.querySelector("textarea, input")?.focus();
  } else node.click();
}

function reachable(node) {
  return !node.disabled && !node.hidden && node.checkVisibility({ visibilityProperty: false });
}

/** Listens. `special(key, event)` is asked first and says true where it has done something. */
export function startKeys({ form, special, submit }) {
  const sheet = document.getElementById("keys");
  const button = document.getElementById("keys-button");
  const box = document.getElementById("keys-on");
  let typingUntil = 0; // somebody types words where no box takes them: none of their letters is meant as a key
  button.hidden = false;
  button.addEventListener("click", () => sheet.showModal());
  box.checked = isOn();
  box.addEventListener("change", () => remember("karat:keys", box.checked ? "" : "off"));

  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]") || event.defaultPrevented || event.isComposing) return;
    const node = document.activeElement;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      submit();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") {
      const fold = node?.closest("details[open]");
      if (isText(node)) node.blur();
      else if (fold) {
        fold.open = false;
        fold.querySelector("summary").focus();
      } else return;
      event.preventDefault();
      return;
    }
    if (isText(node)) return;
    const skipping = node?.matches("input[type=radio]") && node.closest("#more[open]");
    if (event.key === "Enter") {
      if (node?.matches("button, a, summary")) return;
      event.preventDefault();
      const skip = skipping && skipping.querySelector("#skip"); // whoever says why she skips is not submitting
      if (skip) skip.click();
      else submit();
      return;
    }
    if (skipping && event.key.startsWith("Arrow")) return; // the next reason, not the other response
    if (event.key.length === 1 && performance.now() < typingUntil) {
      typingUntil = performance.now() + TYPING_MS;
      return;
    }
    if (!isOn() && event.key !== "?" && !event.key.startsWith("Arrow")) return;
    if (special(event.key, event)) {
      event.preventDefault();
      return;
    }
    const key = event.key === "=" ? "+" : event.key.toLowerCase();
    if (key.length !== 1 || key === " " || event.repeat) return;
    for (const target of document.querySelectorAll(`[data-key~="${CSS.escape(key)}"]`)) {
      const fold = target.closest("details:not([open])");
      if (fold && !target.matches("summary")) {
        // what is folded away is shown before it is done
        event.preventDefault();
        fold.open = true;
        target.focus();
        return;
      }
      if (!reachable(target) && target !== button) continue; // the button may be behind the menu
      event.preventDefault();
      press(target);
      return;
    }
    typingUntil = performance.now() + TYPING_MS;
  });
}
