// Every page of a rater but the task's: sends what waits on this device, so that it is not late for want of a next task.

import { showLeftover } from "./leftover.js";
import { clock } from "./net.js";
import { startQueue } from "./queue.js";

const line = document.createElement("p");
line.setAttribute("role", "status");
line.className = "notice";

function said(text) {
  line.textContent = text;
  if (!line.isConnected) document.getElementById("main").prepend(line);
}

const queue = startQueue(document.body.dataset.who, {
  said,
  sessionEnded: () => said("An answer waits on this device. Sign in again, and it is sent."),
  arrived: () => said(`An answer that waited on this device was sent at ${clock()}.`),
  refused: (item, _, body) => showLeftover(item, body, queue),
});
queue.start();
