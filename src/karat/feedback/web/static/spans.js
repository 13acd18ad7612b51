// Marking parts of a text, by mouse, finger or keyboard. Offsets are code points of the text as it is stored:
// what the page shows for hidden characters counts for as many as it stands for.

const clip = (text, n = 60) => (text.length > n ? `${text.slice(0, n)}…` : text);

/** The pieces of a text in the page: {text} or {ghost, n}, each with its code points. */
function piecesOf(root) {
  const pieces = [];
  const walk = (node) => {
    if (node.nodeType === Node.TEXT_NODE) pieces.push({ points: [...node.data] });
    else if (node.dataset?.n) pieces.push({ ghost: node.cloneNode(true), points: Array(Number(node.dataset.n)).fill("") });
    else node.childNodes.forEach(walk);
  };
  walk(root);
  return pieces;
}

function countPoints(fragment) {
  return piecesOf(fragment).reduce((sum, piece) => sum + piece.points.length, 0);
}

export function startSpans(form, changed) {
  const texts = [...form.querySelectorAll(".spannable")].map((box) => {
    const root = box.querySelector(".plain");
    const pieces = piecesOf(root);
    const points = pieces.flatMap((piece) => piece.points);
    return { box, root, pieces, points, words: wordsOf(points), cursor: null };
  });
  const buttons = [...form.querySelectorAll(".span-class")];
  const list = document.getElementById("marks");
  const said = document.getElementById("span-said");
  const nothing = form.elements.nothing;
  let marks = [];
  let chosen = null; // {position, start, end}: what is selected, also after the selection is gone

  document.getElementById("span-hint").hidden = false;
  for (const button of buttons) {
    button.hidden = false;
    button.addEventListener("pointerdown", (event) => event.preventDefault()); // keeps the selection
    button.addEventListener("click", () => mark(button));
  }
  let pointer = ""; // what touched the page last: not every browser says so with a click
  addEventListener("pointerdown", (event) => { pointer = event.pointerType; }, { capture: true });
  for (const [position, text] of texts.entries()) {
    text.root.addEventListener("click", (event) => onTap(event, position));
    text.box.tabIndex = 0;
    text.box.setAttribute("role", "group");
    text.box.setAttribute("aria-label", `Text of response ${position + 1}. Arrow keys select words, digits mark them.`);
    text.box.addEventListener("keydown", (event) => onKey(event, position));
  }

  function wordsOf(points) {
    const words = [];
    let start = -1;
    points.forEach((point, i) => {
      const blank = point !== "" && !point.trim();
      if (!blank && start < 0) start = i;
      if (blank && start >= 0) {
        words.push([start, i]);
        start = -1;
      }
    });
    if (start >= 0) words.push([start, points.length]);
    return words;
  }

  function offsetIn(root, node, offset) {
    const range = document.createRange();
    range.setStart(root, 0);
    range.setEnd(node, offset);
    return countPoints(range.cloneContents());
  }

  function pointAt(root, offset) {
    let left = offset;
    let last = null;
    const walk = (node) => {
      if (node.nodeType === Node.TEXT_NODE) {
        const points = [...node.data];
        if (left <= points.length) return [node, points.slice(0, left).join("").length];
        left -= points.length;
        last = [node, node.data.length];
        return null;
      }
      if (node.dataset?.n) {
        if (left === 0) return [node.parentNode, [...node.parentNode.childNodes].indexOf(node)];
        left = Math.max(0, left - Number(node.dataset.n));
        return null;
      }
      for (const child of node.childNodes) {
        const found = walk(child);
        if (found) return found;
      }
      return null;
    };
    return walk(root) ?? last ?? [root, root.childNodes.length];
  }

  document.addEventListener("selectionchange", () => {
    const selection = getSelection();
    if (selection.isCollapsed || !selection.rangeCount) return;
    const range = selection.getRangeAt(0);
    const position = texts.findIndex(({ root }) => range.intersectsNode(root));
    if (position < 0) return;
    const { root, points } = texts[position];
    let start = root.contains(range.startContainer) ? offsetIn(root, range.startContainer, range.startOffset) : 0;
    let end = root.contains(range.endContainer) ? offsetIn(root, range.endContainer, range.endOffset) : points.length;
    const blank = (i) => points[i] !== "" && !points[i].trim();
    while (start < end && blank(start)) start += 1;
    while (end > start && blank(end - 1)) end -= 1;
    chosen = start < end ? { position, start, end } : null;
  });

  function select(position, start, end) {
    const { root } = texts[position];
    const range = document.createRange();
    range.setStart(...pointAt(root, start));
    range.setEnd(...pointAt(root, end));
    const selection = getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    chosen = { position, start, end };
    range.startContainer.parentElement?.scrollIntoView({ block: "nearest" });
    said.textContent = texts[position].points.slice(start, end).join("");
  }

  function onKey(event, position) {
    if (event.ctrlKey || event.metaKey || event.altKey || !event.key.startsWith("Arrow")) return;
    const text = texts[position];
    if (!text.words.length) return;
    event.preventDefault();
    const [anchor, head] = text.cursor ?? [0, -1];
    let next = head;
    if (event.key === "ArrowRight") next = head + 1;
    else if (event.key === "ArrowLeft") next = head - 1;
    else next = otherLine(text, Math.max(head, 0), event.key === "ArrowDown" ? 1 : -1);
    next = Math.min(Math.max(next, 0), text.words.length - 1);
    text.cursor = event.shiftKey ? [anchor, next] : [next, next];
    const [low, high] = [...text.cursor].sort((a, b) => a - b);
    select(position, text.words[low][0], text.words[high][1]);
  }

  /** A tap selects a word, a tap on another one all up to it: fingers need no handles, which not every system shows. */
  function onTap(event, position) {
    const text = texts[position];
    const at = pointer === "touch" ? wordAt(text, event.clientX, event.clientY) : -1;
    if (at < 0) return;
    const [start, end] = text.words[at];
    const goesOn = chosen?.position === position && (end <= chosen.start || start >= chosen.end);
    text.cursor = [at, at];
    select(position, goesOn ? Math.min(start, chosen.start) : start, goesOn ? Math.max(end, chosen.end) : end);
  }

  function wordAt(text, x, y) {
    const place = document.caretPositionFromPoint?.(x, y);
    const range = place ? null : document.caretRangeFromPoint?.(x, y);
    const [node, offset] = place ? [place.offsetNode, place.offset] : [range?.startContainer, range?.startOffset];
    if (!node || !text.root.contains(node)) return -1;
    const point = offsetIn(text.root, node, offset);
    return text.words.findIndex(([start, end]) => start <= point && point <= end);
  }

  function boxOf(text, i) {
    const range = document.createRange();
    range.setStart(...pointAt(text.root, text.words[i][0]));
    range.setEnd(...pointAt(text.root, text.words[i][1]));
    return range.getBoundingClientRect();
  }

  function otherLine(text, from, by) {
    const here = boxOf(text, from);
    let line = null;
    let best = from;
    for (let i = from + by; i >= 0 && i < text.words.length; i += by) {
      const box = boxOf(text, i);
      if (Math.abs(box.top - here.top) < 3) continue;
      if (line !== null && Math.abs(box.top - line) >= 3) break;
      if (line === null || Math.abs(box.left - here.left) < Math.abs(boxOf(text, best).left - here.left)) best = i;
      line ??= box.top;
    }
    return best;
  }

  function mark(button) {
    if (!chosen) {
      said.textContent = "Select a part of the text first.";
      return;
    }
    const { position, start, end } = chosen;
    const same = marks.find((each) => each.position === position && each.start === start && each.end === end && each.name === button.dataset.class);
    if (!same) marks.push({ position, start, end, name: button.dataset.class });
    if (nothing) nothing.checked = false;
    said.textContent = `Marked as ${button.dataset.label}.`;
    chosen = null;
    getSelection().removeAllRanges();
    render();
    changed();
  }

  function remove(gone) {
    marks = marks.filter((each) => each !== gone);
    said.textContent = "Mark removed.";
    render();
    changed();
    (list.querySelector("button") ?? texts[gone.position].box).focus({ preventScroll: true });
  }

  const buttonOf = (name) => buttons.find((button) => button.dataset.class === name);

  function render() {
    for (const [position, text] of texts.entries()) paint(text, marks.filter((each) => each.position === position));
    const order = [...marks].sort((a, b) => a.position - b.position || a.start - b.start || a.end - b.end);
    list.replaceChildren(...order.map((each) => {
      const item = document.createElement("li");
      const button = buttonOf(each.name);
      const swatch = document.createElement("span");
      swatch.className = `swatch m${Number(button.dataset.index) % 5}`;
      const quote = document.createElement("q");
      quote.dir = "auto";
      quote.textContent = clip(texts[each.position].points.slice(each.start, each.end).join(""));
      const away = document.createElement("button");
      away.type = "button";
      away.textContent = "×";
      away.setAttribute("aria-label", `Remove the mark ${button.dataset.label}: ${quote.textContent}`);
      away.addEventListener("click", () => remove(each));
      const field = document.createElement("input");
      field.type = "hidden";
      field.name = "span";
      field.value = `${each.position}:${each.start}:${each.end}:${each.name}`;
      const label = document.createElement("span");
      label.textContent = button.dataset.label;
      item.append(swatch, label, quote, away, field);
      return item;
    }));
  }

  function paint({ root, pieces, points }, spans) {
    const edges = new Set([0, points.length, ...spans.flatMap(({ start, end }) => [start, end])]);
    const made = [];
    let at = 0;
    let group = null;
    for (const piece of pieces) {
      let from = 0;
      while (from < piece.points.length) {
        let to = from + 1;
        if (piece.ghost) to = piece.points.length;
        else while (to < piece.points.length && !edges.has(at + to)) to += 1;
        const cover = spans.filter(({ start, end }) => start < at + to && end > at + from);
        const key = cover.map(({ start, end, name }) => `${start}:${end}:${name}`).join(" ");
        const node = piece.ghost ? piece.ghost.cloneNode(true) : document.createTextNode(piece.points.slice(from, to).join(""));
        if (!cover.length) {
          group = null;
          made.push(node);
        } else {
          if (group?.key !== key) {
            const index = Number(buttonOf(cover[0].name).dataset.index);
            const wrap = document.createElement("mark");
            wrap.className = `m${index % 5}${cover.length > 1 ? " many" : ""}`;
            group = { key, wrap };
            made.push(wrap);
          }
          group.wrap.append(node);
          const ended = cover.filter(({ end }) => end === at + to);
          if (ended.length) group.wrap.dataset.tag = ended.map(({ name }) => Number(buttonOf(name).dataset.index) + 1).join(",");
        }
        from = to;
      }
      at += piece.points.length;
    }
    root.replaceChildren(...made);
  }

  function load(values) {
    marks = values.flatMap((value) => {
      const [position, start, end, ...name] = value.split(":");
      const found = { position: Number(position), start: Number(start), end: Number(end), name: name.join(":") };
      return texts[found.position] && buttonOf(found.name) ? [found] : [];
    });
    render();
  }

  form.addEventListener("karat:filled", (event) => load(event.detail.get("span") ?? []));
  nothing?.addEventListener("change", () => {
    if (nothing.checked && marks.length) {
      marks = [];
      render();
    }
  });
  load([...list.querySelectorAll("input[name=span]")].map((field) => field.value));

  return (key) => {
    if (key === "m" || key === "M") {
      texts[0]?.box.focus();
      return true;
    }
    return false;
  };
}
