"use strict";
(function () {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const plots = Array.from(document.querySelectorAll(".plot"));
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

  async function draw() {
    for (const plot of plots) {
      const figure = JSON.parse(plot.querySelector("script").textContent);
      await Plotly.newPlot(plot, figure.data, figure.layout, config);
      plot.dataset.drawn = "yes";
    }
    await paint(dark.matches);
    document.body.dataset.ready = String(plots.length);
  }

  dark.addEventListener("change", (event) => paint(event.matches));
  window.addEventListener("beforeprint", () => paint(false));
  window.addEventListener("afterprint", () => paint(dark.matches));
  draw();
})();
