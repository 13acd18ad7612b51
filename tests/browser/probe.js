() => {
  // What of this page scrolls sideways, is cut off, or cannot be reached and pressed.
  const wrong = [];
  const root = document.documentElement;
  const named = (node) => `${node.tagName.toLowerCase()}${node.id ? `#${node.id}` : ""}.${node.className} “${(node.textContent || node.value || "").trim().slice(0, 40)}”`;
  const spoken = (node) => getComputedStyle(node).clipPath === "inset(50%)"; // for screen readers only
  const seen = (node) => node.checkVisibility({ visibilityProperty: true }) && !node.closest(".sr, [inert]") && !spoken(node);
  if (root.scrollWidth > innerWidth) wrong.push(`scrolls sideways: ${root.scrollWidth} of ${innerWidth}`);

  const scrolls = (node, way) => /auto|scroll/.test(getComputedStyle(node)[way]);
  /** The nearest box around a node that scrolls sideways, and so shows whatever reaches out of it. */
  const scrollerOf = (node) => {
    for (let at = node.parentElement; at; at = at.parentElement) if (scrolls(at, "overflowX")) return at;
    return null;
  };
  for (const node of document.body.querySelectorAll("*")) {
    if (!seen(node) || node.closest("svg")) continue;
    const style = getComputedStyle(node);
    const box = node.getBoundingClientRect();
    const texts = [...node.childNodes].filter((child) => child.nodeType === Node.TEXT_NODE && child.data.trim());
    const cuts = (way) => ["hidden", "clip"].includes(style[way]);
    if (cuts("overflowX") && node.scrollWidth > node.clientWidth + 1 && style.textOverflow !== "ellipsis") wrong.push(`cut at its side: ${named(node)}`);
    if (cuts("overflowY") && node.scrollHeight > node.clientHeight + 1 && node !== document.body && !node.closest(".long")) wrong.push(`cut at its foot: ${named(node)}`);
    if (!texts.length || !box.width || node.closest("dialog:not([open]), option")) continue;
    for (const text of texts) {
      const range = document.createRange();
      range.selectNodeContents(text);
      for (const line of range.getClientRects()) {
        if (scrollerOf(node)) break;
        if (line.right > innerWidth + 1 || line.left < -1) { wrong.push(`reaches out of the page: ${named(node)}`); break; }
        // a text of a button that is wider than the button
        const control = node.closest("button, .button, label.pick, .scale label, summary, .badge");
        const around = control?.getBoundingClientRect();
        if (around && (line.right > around.right + 1 || line.left < around.left - 1 || line.bottom > around.bottom + 2 || line.top < around.top - 2)) {
          wrong.push(`reaches out of its control: ${named(control)}`);
          break;
        }
      }
    }
  }

  for (const node of document.querySelectorAll("a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex='0']")) {
    if (!seen(node) || node.disabled || node.tabIndex < 0 || node.matches(".jump")) continue;
    node.scrollIntoView({ block: "center", inline: "center", behavior: "instant" });
    const box = [...node.getClientRects()][0];
    if (!box || box.width < 1) { wrong.push(`has no size: ${named(node)}`); continue; }
    const left = Math.max(box.left, 0), right = Math.min(box.right, innerWidth);
    const top = Math.max(box.top, 0), bottom = Math.min(box.bottom, innerHeight);
    const hit = document.elementFromPoint((left + right) / 2, (top + bottom) / 2);
    const label = node.closest("label") ?? node.labels?.[0];
    if (!hit || !(node.contains(hit) || hit.contains(node) && hit.closest("label, summary") || label?.contains(hit)))
      wrong.push(`cannot be pressed: ${named(node)}, under ${hit ? named(hit) : "nothing"}`);
  }
  scrollTo(0, 0);
  return [...new Set(wrong)];
}
