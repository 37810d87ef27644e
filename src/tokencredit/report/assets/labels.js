// Names in charts are never cut: their width is measured, and what is too wide is broken into lines.

const LINE = 14;
const CHART_FONT = "12px system-ui, sans-serif";
let chartPen;
const widthOf = (said) => {
  chartPen ??= html("canvas").getContext("2d");
  chartPen.font = CHART_FONT;
  return chartPen.measureText(said).width;
};
const widest = (names) => Math.max(0, ...names.map(widthOf));

// Lines of at most a width, broken behind a separator where there is one.
const wrapped = (said, most) => {
  const lines = [""];
  const fits = (more) => lines.at(-1) === "" || widthOf(lines.at(-1) + more) <= most;
  for (const piece of String(said).split(/(?<=[\s:,;/_])/)) {
    if (!fits(piece)) lines.push("");
    for (const letter of piece) {
      if (!fits(letter)) lines.push("");
      lines[lines.length - 1] += letter;
    }
  }
  return lines;
};

// Lines that end at x, around a middle.
const linesAt = (x, middle, lines) =>
  lines.map((said, i) => text(x, middle + 4 + LINE * (i - (lines.length - 1) / 2), said, { "text-anchor": "end" }));

// The name of an axis, around x, or as near to it as the drawing's width allows.
const centred = (x, y, said, width) => {
  const half = widthOf(said) / 2;
  return text(Math.max(half, Math.min(width - half, x)), y, said, { "text-anchor": "middle", class: "axis" });
};
