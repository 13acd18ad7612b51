(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const paint = (value) => {
    if (typeof value === "string" && value.startsWith("@")) {
      return getComputedStyle(root).getPropertyValue("--" + value.slice(1)).trim();
    }
    if (Array.isArray(value)) return value.map(paint);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, paint(item)]));
    }
    return value;
  };
  const PAPER_PIXELS = 780; // a chart that is higher than a page would be cut in two
  let paper = false;
  const draw = () => {
    if (!window.Plotly) return;
    const css = getComputedStyle(root);
    for (const [name, figure] of Object.entries(figures)) {
      const painted = paint(figure);
      const layout = {
        ...painted.layout,
        height: paper ? Math.min(painted.layout.height, PAPER_PIXELS) : painted.layout.height,
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        font: { family: css.getPropertyValue("--sans"), size: 12, color: css.getPropertyValue("--text").trim() },
        hoverlabel: { bgcolor: css.getPropertyValue("--surface").trim(), bordercolor: css.getPropertyValue("--line").trim() },
      };
      Plotly.react("plot-" + name, painted.data, layout, {
        responsive: true,
        displaylogo: false,
        // where nothing can hover the bar would always lie on the legend
        displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
        modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
      });
    }
  };
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    draw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let before; // the colours on the screen, which printing borrows
  let folded = []; // what is folded on the screen: nobody can unfold it on paper
  addEventListener("beforeprint", () => {
    paper = true;
    before = root.dataset.theme;
    root.dataset.theme = "light";
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const one of folded) one.open = true;
    draw();
  });
  addEventListener("afterprint", () => {
    paper = false;
    for (const one of folded) one.open = false;
    if (before) root.dataset.theme = before;
    else delete root.dataset.theme;
    draw();
  });
  draw();
})();
