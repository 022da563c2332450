"use strict";
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 640px)");
  const touch = matchMedia("(pointer: coarse)");

  // What of a figure depends on the page's colors, as plotly's own names of layout attributes.
  function theme(layout) {
    const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const found = {
      "font.color": color("--ink"), "font.family": getComputedStyle(document.body).fontFamily, "font.size": 13,
      "hoverlabel.bgcolor": color("--card"), "hoverlabel.bordercolor": color("--quiet"),
      "hoverlabel.font.color": color("--ink"), "hoverlabel.font.size": 12,
    };
    for (const name of Object.keys(layout).filter((each) => /^[xy]axis\d*$/.test(each))) {
      found[`${name}.gridcolor`] = color("--line");
      found[`${name}.zerolinecolor`] = color("--line");
      found[`${name}.linecolor`] = color("--line");
      found[`${name}.title.font.size`] = 12;
    }
    (layout.annotations || []).forEach((_, i) => { found[`annotations[${i}].font.color`] = color("--ink"); });
    return found;
  }

  // On a phone a color bar lies under its figure or is left out, and a finger scrolls the page instead of zooming.
  function fitted(figure) {
    const layout = figure.layout;
    layout.dragmode = touch.matches ? false : "zoom";
    layout.autosize = true;
    if (narrow.matches) {
      const known = (layout.meta && layout.meta.narrow) || {};
      const short = (text) => known[text] || (text.length > 22 ? text.slice(0, 21) + "…" : text);
      for (const [name, axis] of Object.entries(layout)) {
        if (/^yaxis\d*$/.test(name) && axis.ticktext) axis.ticktext = axis.ticktext.map(short);
        if (/^xaxis\d*$/.test(name) && axis.title && axis.title.text) {
          axis.title.text = axis.title.text.split(/[,;]/)[0].replace(" (metric's units)", "");
        }
      }
      for (const title of layout.annotations || []) {
        if (title.yanchor === "bottom" && title.xref === "paper") {
          Object.assign(title, { x: 1, xanchor: "right", font: { ...title.font, size: 12 } });
        }
      }
      for (const trace of figure.data) {
        if (trace.type === "heatmap") {
          trace.showscale = false;
          trace.y = trace.y.map(short);
        }
        const bar = trace.marker && trace.marker.colorbar;
        if (bar) {
          Object.assign(bar, { orientation: "h", y: -0.08, yanchor: "top", x: 0.5, len: 0.9 });
          bar.title = { text: bar.title.text.replace("<br>", " "), side: "bottom" };
          layout.margin.b = 96;
          layout.xaxis.title = { text: "" };
        }
      }
      layout.margin.r = Math.min(layout.margin.r, 40);
    }
    return figure;
  }

  // Buttons above a figure that has more than one view: what its horizontal axis is.
  function switches(target, views) {
    const row = document.createElement("div");
    row.className = "views";
    views.forEach((view, i) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = view.label;
      button.setAttribute("aria-pressed", String(i === 0));
      button.addEventListener("click", () => {
        for (const each of row.children) each.setAttribute("aria-pressed", String(each === button));
        Plotly.update(target, { x: target.data.map(() => view.x) }, { "xaxis.title.text": view.title });
      });
      row.append(button);
    });
    target.before(row);
  }

  async function draw(source) {
    const target = document.getElementById(source.dataset.for);
    const figure = fitted(JSON.parse(source.textContent));
    await Plotly.newPlot(target, figure.data, figure.layout, { responsive: true, displayModeBar: false });
    const color = () => Plotly.relayout(target, theme(target.layout));
    await color();
    dark.addEventListener("change", color);
    if (figure.layout.meta && figure.layout.meta.views) switches(target, figure.layout.meta.views);
    target.dataset.drawn = "yes";
  }

  // A figure in a folded part is drawn when the part is opened: before that it has no width.
  document.querySelectorAll("script[data-for]").forEach((source) => {
    const folded = source.closest("details.plots");
    if (folded && !folded.open) folded.addEventListener("toggle", () => draw(source), { once: true });
    else draw(source);
  });
})();
