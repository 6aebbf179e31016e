"use strict";
(function () {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const plots = Array.from(document.querySelectorAll(".plot"));
  const folds = Array.from(document.querySelectorAll("details"));
  const config = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d"] };

  function ink(isDark) {
    return {
      "font.color": isDark ? "#c9ced5" : "#333a42",
      "hoverlabel.bgcolor": isDark ? "#262b31" : "#ffffff",
      "hoverlabel.font.color": isDark ? "#e6e8eb" : "#1c1f23",
    };
  }

  function paint(isDark) {
    return Promise.all(plots.filter((p) => p.dataset.drawn).map((p) => Plotly.relayout(p, ink(isDark))));
  }

  // a figure within a closed part is drawn when the part opens: the page is there at once
  function draw(plot, isDark) {
    if (plot.dataset.drawn) return Promise.resolve();
    plot.dataset.drawn = "yes";
    const figure = JSON.parse(plot.querySelector("script").textContent);
    return Plotly.newPlot(plot, figure.data, figure.layout, config).then(() => Plotly.relayout(plot, ink(isDark)));
  }

  function visible() {
    return plots.filter((p) => !p.dataset.drawn && !p.closest("details:not([open])"));
  }

  async function drawVisible() {
    for (const plot of visible()) await draw(plot, dark.matches);
    document.body.dataset.ready = String(plots.filter((p) => p.dataset.drawn).length);
  }

  function reveal() {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
    if (target) target.scrollIntoView();
  }

  let closed = [];
  dark.addEventListener("change", (event) => paint(event.matches));
  window.addEventListener("hashchange", reveal);
  window.addEventListener("beforeprint", () => {
    closed = folds.filter((fold) => !fold.open);
    closed.forEach((fold) => { fold.open = true; });
    visible().forEach((plot) => draw(plot, false));
    paint(false);
  });
  window.addEventListener("afterprint", () => {
    closed.forEach((fold) => { fold.open = false; });
    paint(dark.matches);
  });
  folds.forEach((fold) => fold.addEventListener("toggle", drawVisible));
  reveal();
  drawVisible();
})();
