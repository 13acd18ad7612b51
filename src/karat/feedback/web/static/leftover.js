// An answer of this device that was not taken and whose task is not on the page: says why, and gives back what was typed.

import { fieldOf } from "./queue.js";

/** What the server says of an answer that it did not take. */
export function reasonsOf(body) {
  if (body?.messages) return Object.values(body.messages);
  return [body?.message ?? body?.error?.message ?? "The server did not take the answer."];
}

function made(tag, text, more = {}) {
  const node = Object.assign(document.createElement(tag), more);
  node.textContent = text;
  return node;
}

/** Shows it above everything else until somebody has read it; only then it leaves this device. */
export function showLeftover(item, body, queue) {
  const box = made("section", "", { className: "notice leftover", role: "alert" });
  const when = new Date(item.at).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
  box.append(made("p", `An answer of ${when} that waited on this device was not taken.`));
  for (const reason of reasonsOf(body)) box.append(made("p", reason));
  for (const name of ["text", "reason"]) {
    const typed = fieldOf(item, name);
    if (!typed.trim()) continue;
    box.append(made("p", "You wrote:"), made("pre", typed, { dir: "auto", tabIndex: 0, className: "plain" }));
  }
  const row = made("p", "", { className: "row" });
  if (body?.lease && body.confirm !== "again") row.append(made("a", "Back to the task", { className: "button primary", href: "/work" }));
  const button = made("button", "I have read this; discard it", { type: "button" });
  button.addEventListener("click", () => {
    queue.drop(item.key);
    box.remove();
  });
  row.append(button);
  box.append(row);
  document.getElementById("main").prepend(box);
}
