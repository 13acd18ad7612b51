// Keeps the figures of the overview fresh: numbers and the heights of bars, nothing that could become code.
// Without this script the page is the same, as of the moment when it was loaded.

const place = document.querySelector("[data-source]");

/** The element that shows one live figure. */
const cell = (name) => document.querySelector(`[data-live="${CSS.escape(name)}"]`);

/** Write a text where it differs, and let the eye notice. */
function write(element, text) {
  if (!element || element.textContent === text) return;
  element.textContent = text;
  element.classList.remove("fresh");
  requestAnimationFrame(() => element.classList.add("fresh"));
}

/** Thin spaces between thousands, as the server writes them. */
const number = (value) => String(value).replace(/\B(?=(\d{3})+(?!\d))/g, "\u202f");

function showHours(hours) {
  const chart = document.getElementById("hours");
  const known = hours.every((hour) => document.querySelector(`[data-hour="${CSS.escape(hour.hour)}"]`));
  const highest = Math.max(...hours.map((hour) => hour.n), 0);
  if (!chart || !known || highest > Number(chart.dataset.top)) {
    // another hour has begun, or the scale no longer holds: the server draws anew, unless somebody is at something
    if (document.hasFocus() && document.activeElement !== document.body) return;
    location.reload();
    return;
  }
  const { top, floor, height } = chart.dataset;
  for (const { hour, n } of hours) {
    write(document.querySelector(`[data-hour="${CSS.escape(hour)}"]`), number(n));
    const bar = chart.querySelector(`[data-bar="${CSS.escape(hour)}"]`);
    const size = (Number(height) * n) / Number(top);
    bar.setAttribute("height", size.toFixed(1));
    bar.setAttribute("y", (Number(floor) - size).toFixed(1));
  }
}

function showQueue(rows) {
  for (const row of rows) {
    const line = document.querySelector(`[data-queue="${CSS.escape(row.key)}"]`);
    if (!line) continue;
    for (const box of line.querySelectorAll("[data-cell]")) write(box, number(row[box.dataset.cell]));
    write(line.querySelector(".done .num"), row.done);
    line.querySelector(".done .bar")?.setAttribute("width", (100 * row.share).toFixed(1));
  }
}

function listen(source) {
  const events = new EventSource(source);
  events.addEventListener("pulse", (event) => {
    const { at, figures, hours, queue } = JSON.parse(event.data);
    for (const [name, value] of Object.entries(figures)) write(cell(name), number(value));
    showHours(hours);
    showQueue(queue);
    place.classList.add("on");
    write(cell("state"), `Live; as of ${at} UTC`);
  });
  events.addEventListener("error", () => {
    place.classList.remove("on");
    write(cell("state"), "The connection is interrupted; trying again");
  });
  addEventListener("pagehide", () => events.close());
}

if (place) listen(place.dataset.source);
