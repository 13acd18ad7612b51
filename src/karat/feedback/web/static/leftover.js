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

/** Shows what was typed above everything else, until somebody has read why it is there; only then it leaves this device. */
function show(item, lines, links, discard) {
  const box = made("section", "", { className: "notice leftover", role: "alert" });
  for (const line of lines) box.append(made("p", line));
  for (const name of ["text", "reason"]) {
    const typed = fieldOf(item, name);
    if (!typed.trim()) continue;
    box.append(made("p", "You wrote:"), made("pre", typed, { dir: "auto", tabIndex: 0, className: "plain" }));
  }
  const row = made("p", "", { className: "row" });
  row.append(...links);
  const button = made("button", "I have read this; discard it", { type: "button" });
  button.addEventListener("click", () => {
    discard();
    box.remove();
  });
  row.append(button);
  box.append(row);
  document.getElementById("main").prepend(box);
}

const dated = (at) => new Date(at).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });

/** An answer that the server did not take. */
export function showLeftover(item, body, queue) {
  const back = body?.lease && body.confirm !== "again";
  const links = back ? [made("a", "Back to the task", { className: "button primary", href: "/work" })] : [];
  const head = `An answer of ${dated(item.at)} that waited on this device was not taken.`;
  show(item, [head, ...reasonsOf(body)], links, () => queue.drop(item.key));
}

/** What was begun on a task that is somebody else's now, or nobody's. */
export function showForsaken(item, discard) {
  const head = `You had begun another task (${dated(item.at)}). It is not yours any more: it was taken back, or its time ran out.`;
  show(item, [head], [], discard);
}
