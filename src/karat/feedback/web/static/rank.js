// Ranking: press the letters from best to worst, drag them, or use the buttons; ties share a place.
// The selects in the heads of the responses stay the truth, so that they and the board always agree.

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

export function startRank(form, changed) {
  const board = document.getElementById("rank-board");
  const n = Number(board.dataset.n);
  const letters = Array.from({ length: n }, (_, i) => (i < 26 ? String.fromCharCode(65 + i) : String(i + 1)));
  const selects = letters.map((_, i) => form.elements[`rank-${i}`]);
  const pool = board.querySelector(".pool");
  const list = board.querySelector(".places");
  const said = document.getElementById("rank-said");
  let places = [];
  let held = null;

  function readSelects() {
    const byRank = new Map();
    selects.forEach((select, i) => {
      if (select.value) byRank.set(Number(select.value), [...(byRank.get(Number(select.value)) ?? []), i]);
    });
    places = [...byRank.keys()].sort((a, b) => a - b).map((rank) => byRank.get(rank));
  }

  function writeSelects() {
    selects.forEach((select, i) => {
      const at = places.findIndex((place) => place.includes(i));
      select.value = at < 0 ? "" : String(at + 1);
    });
  }

  function describe() {
    const order = places.map((place) => place.map((i) => letters[i]).join(" and ")).join(", then ");
    const left = letters.filter((_, i) => !places.flat().includes(i));
    said.textContent = `${order ? `Best to worst: ${order}.` : ""}${left.length ? ` Not ranked: ${left.join(", ")}.` : ""}`;
  }

  function commit() {
    places = places.filter((place) => place.length);
    writeSelects();
    render();
    describe();
    changed();
  }

  const whereIs = (i) => places.findIndex((place) => place.includes(i));
  function take(i) {
    places = places.map((place) => place.filter((each) => each !== i));
  }

  function append(i) {
    if (whereIs(i) < 0) places.push([i]);
    held = i;
    commit();
  }

  function move(i, by) {
    const at = whereIs(i);
    if (at < 0) return;
    if (places[at].length > 1) {
      take(i);
      places.splice(by < 0 ? at : at + 1, 0, [i]);
    } else {
      const to = at + by;
      if (to < 0 || to >= places.length) return;
      [places[at], places[to]] = [places[to], places[at]];
    }
    held = i;
    commit();
  }

  function tie(i) {
    const at = whereIs(i);
    if (at < 0) return;
    if (places[at].length > 1) {
      take(i);
      places.splice(at + 1, 0, [i]);
    } else if (at > 0) {
      take(i);
      places[at - 1].push(i);
    }
    held = i;
    commit();
  }

  function button(className, text, label, act) {
    const made = element("button", className, text);
    made.type = "button";
    made.setAttribute("aria-label", label);
    made.addEventListener("click", act);
    return made;
  }

  function chip(i, ranked) {
    const made = element("span", "chip");
    made.dataset.p = String(i);
    const grip = button("grip", letters[i], ranked ? `Response ${letters[i]}, hold to move` : `Response ${letters[i]}: next best`, () => {
      if (dragged) return;
      if (!ranked) append(i);
      else {
        held = held === i ? null : i;
        render();
      }
    });
    grip.addEventListener("pointerdown", (event) => startDrag(event, i, made));
    if (ranked) {
      grip.setAttribute("aria-pressed", String(held === i));
      made.append(
        button("nudge", "‹", `Move ${letters[i]} towards best`, () => move(i, -1)),
        grip,
        button("nudge", "›", `Move ${letters[i]} towards worst`, () => move(i, 1)),
        button("nudge", "=", `Tie ${letters[i]} with the place before, or untie it`, () => tie(i)),
      );
    } else made.append(grip);
    return made;
  }

  function render() {
    const focused = document.activeElement?.closest?.(".rank-board") ? document.activeElement.getAttribute("aria-label") : null;
    const ranked = new Set(places.flat());
    pool.replaceChildren(...letters.map((_, i) => i).filter((i) => !ranked.has(i)).map((i) => {
      const item = document.createElement("li");
      item.append(chip(i, false));
      return item;
    }));
    list.replaceChildren(...places.map((place, at) => {
      const item = element("li", "place");
      item.dataset.at = String(at);
      item.append(element("span", "nth", `${at + 1}.`), ...place.map((i) => chip(i, true)));
      return item;
    }));
    if (focused) {
      const same = [...board.querySelectorAll("button")].find((each) => each.getAttribute("aria-label") === focused);
      (same ?? board.querySelector(`.chip[data-p="${held}"] .grip`))?.focus({ preventScroll: true });
    }
  }

  // Dragging, by mouse, pen or finger: only from a letter, so that scrolling never re-orders anything
  let dragged = false;
  function startDrag(event, i, node) {
    if (event.button) return;
    const start = [event.clientX, event.clientY];
    const grip = event.currentTarget;
    dragged = false;
    grip.setPointerCapture(event.pointerId);
    const target = (x, y) => {
      node.style.pointerEvents = "none";
      const below = document.elementFromPoint(x, y);
      node.style.pointerEvents = "";
      return below;
    };
    const clean = () => {
      for (const each of [pool, list, ...list.children]) each.classList.remove("over");
    };
    const onMove = (step) => {
      const [dx, dy] = [step.clientX - start[0], step.clientY - start[1]];
      if (!dragged && Math.hypot(dx, dy) < 6) return;
      dragged = true;
      node.classList.add("held");
      node.style.transform = `translate(${dx}px, ${dy}px)`;
      clean();
      const below = target(step.clientX, step.clientY);
      (below?.closest(".place") ?? below?.closest(".places, .pool"))?.classList.add("over");
    };
    const onEnd = (step) => {
      grip.removeEventListener("pointermove", onMove);
      clean();
      node.style.transform = "";
      node.classList.remove("held");
      if (!dragged) return;
      const below = step.type === "pointerup" ? target(step.clientX, step.clientY) : null;
      setTimeout(() => { dragged = false; });
      drop(i, below, step.clientX, step.clientY);
    };
    grip.addEventListener("pointermove", onMove);
    grip.addEventListener("pointerup", onEnd, { once: true });
    grip.addEventListener("pointercancel", onEnd, { once: true });
  }

  function drop(i, below, x, y) {
    const place = below?.closest(".place");
    if (place) {
      const at = Number(place.dataset.at);
      if (places[at].includes(i)) return;
      const with_ = places[at];
      take(i);
      with_.length ? places.find((each) => each.includes(with_.find((other) => other !== i)))?.push(i) : append(i);
    } else if (below?.closest(".places")) {
      const before = [...list.children].findIndex((each) => {
        const box = each.getBoundingClientRect();
        return y < box.top || (y < box.bottom && x < box.left);
      });
      const marker = before < 0 ? null : places[before];
      take(i);
      places.splice(marker ? places.indexOf(places.find((each) => each[0] === marker.find((other) => other !== i))) : places.length, 0, [i]);
    } else if (below?.closest(".pool")) take(i);
    else return;
    held = i;
    commit();
  }

  for (const select of selects) {
    select.addEventListener("change", () => {
      readSelects();
      render();
      describe();
    });
  }
  form.addEventListener("karat:filled", () => {
    readSelects();
    render();
  });
  readSelects();
  render();

  return (key) => {
    if (/^[1-9]$/.test(key) && Number(key) <= n) {
      const i = Number(key) - 1;
      if (whereIs(i) < 0) append(i);
      else {
        held = i;
        render();
      }
      return true;
    }
    if (held === null) return false;
    if (key === "ArrowLeft" || key === "ArrowUp") move(held, -1);
    else if (key === "ArrowRight" || key === "ArrowDown") move(held, 1);
    else if (key === "t" || key === "0") tie(held);
    else return false;
    return true;
  };
}
