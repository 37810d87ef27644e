// Charts from data, as SVG, each with the table behind it.

const NARROW = 280;

// {kind, title, note, ...} -> a <figure>, drawn anew when its width changes.
const figure = (spec) => {
  const { draw, table } = FIGURES[spec.kind];
  const canvas = html("div", { class: "canvas" });
  const hidden = new Set();
  const redraw = () => {
    if (draw && canvas.clientWidth) canvas.replaceChildren(draw(spec, Math.max(NARROW, canvas.clientWidth), hidden));
  };
  if (draw) new ResizeObserver(redraw).observe(canvas);
  const caption = html(
    "figcaption",
    {},
    html("strong", { text: spec.title }),
    spec.note ? html("span", { text: ` ${spec.note}` }) : "",
  );
  const legend = spec.kind === "lines" && spec.series.length > 1 ? legendOf(spec, hidden, redraw) : "";
  const contents = () => [tableOf(table(spec), spec.title), copyButton("Copy as CSV", () => csv(table(spec)))];
  const behind = draw ? drawer("Table", contents) : html("div", {}, ...contents());
  return html("figure", { class: `figure ${spec.kind}` }, caption, draw ? canvas : "", legend, behind);
};

// Filled when it is first opened: most tables are never looked at.
const drawer = (title, contents) => {
  const box = html("details", {}, html("summary", { text: title }));
  box.addEventListener("toggle", () => box.append(...contents()), { once: true });
  return box;
};

const legendOf = (spec, hidden, redraw) =>
  html(
    "ul",
    { class: "legend", "aria-label": "Series, to be shown or hidden" },
    ...spec.series.map((series, i) =>
      html(
        "li",
        {},
        html(
          "button",
          {
            type: "button",
            "aria-pressed": "true",
            click: (event) => {
              const shown = !hidden.delete(i);
              if (shown) hidden.add(i);
              event.currentTarget.setAttribute("aria-pressed", String(!shown));
              redraw();
            },
          },
          svg(
            "svg",
            { width: 24, height: 10, "aria-hidden": "true" },
            svg("line", { x1: 0, x2: 24, y1: 5, y2: 5, ...stroke(i) }),
          ),
          series.name,
        ),
      ),
    ),
  );

// After Okabe and Ito, for colour-blind readers; then the same dashed.
const COLOURS = 5;
const stroke = (i) => ({
  class: `series c${i % COLOURS}`,
  "stroke-dasharray": ["", "6 3", "2 3", "10 3 2 3"][Math.floor(i / COLOURS) % 4] || null,
});

const ticks = (low, high, count) => {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1)
    found.push(+(i * step).toPrecision(12));
  return found;
};

const extent = (values) => {
  let [low, high] = [Infinity, -Infinity];
  for (const v of values) {
    if (v === null || v === undefined) continue;
    if (v < low) low = v;
    if (v > high) high = v;
  }
  if (low > high) return [0, 1];
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
};

const scale = (from, to) => (v) => to[0] + ((v - from[0]) / (from[1] - from[0])) * (to[1] - to[0]);
const text = (x, y, said, attributes = {}) => svg("text", { x, y, ...attributes, text: said });
// Broken where a point has no y.
const path = (points) => {
  let pen = "M";
  const drawn = points.map(([x, y]) => {
    if (!known(y)) {
      pen = "M";
      return "";
    }
    const step = `${pen}${x.toFixed(1)} ${y.toFixed(1)}`;
    pen = "L";
    return step;
  });
  return drawn.join("");
};

// Of many points to a pixel only the lowest and the highest are seen.
const thinned = (points, width) => {
  const size = Math.ceil(points.length / width);
  if (size < 4) return points;
  const kept = [];
  for (let i = 0; i < points.length; i += size) {
    const bucket = points.slice(i, i + size);
    const values = bucket.filter((p) => known(p[1]));
    const ends = values.length ? [0, values.length - 1] : [];
    const [low, high] = extent(values.map((p) => p[1]));
    kept.push(...values.filter((p, at) => ends.includes(at) || p[1] === low || p[1] === high));
    if (values.length < bucket.length) kept.push([bucket.at(-1)[0], null]);
  }
  return kept;
};

const canvasOf = (spec, width, height) =>
  svg("svg", {
    viewBox: `0 0 ${width} ${height}`,
    width,
    height,
    role: "img",
    "aria-label": `${spec.title}. The table below has the numbers.`,
  });

const drawLines = (spec, width, hidden) => {
  const height = spec.height ?? 230;
  const shown = spec.series.filter((_, i) => !hidden.has(i));
  const [x0, x1] = extent(shown.flatMap((s) => s.points.map((p) => p[0])));
  const [y0, y1] = extent(shown.flatMap((s) => s.points.flatMap((p) => p.slice(1))));
  const x = scale([x0, x1], [46, width - 12]);
  const top = spec.marks?.length ? 32 : 10;
  const y = scale([y0, y1], [height - 34, top]);
  const chart = canvasOf(spec, width, height);
  for (const tick of ticks(y0, y1, 4)) {
    chart.append(
      svg("line", { class: "grid", x1: 46, x2: width - 12, y1: y(tick), y2: y(tick) }),
      text(40, y(tick) + 4, number(tick), { "text-anchor": "end" }),
    );
  }
  for (const tick of ticks(x0, x1, Math.max(2, width / 110)))
    chart.append(text(x(tick), height - 18, number(tick), { "text-anchor": "middle" }));
  chart.append(text((46 + width) / 2, height - 3, spec.x, { "text-anchor": "middle", class: "axis" }));
  // Names of neighbours stand above one another.
  let [named, row] = [-Infinity, 0];
  for (const mark of (spec.marks ?? []).toSorted((a, b) => a.at - b.at)) {
    row = x(mark.at) - named < 70 ? 1 - row : 0;
    named = x(mark.at);
    chart.append(
      svg(
        "line",
        { class: `mark ${mark.kind}`, x1: x(mark.at), x2: x(mark.at), y1: 4, y2: height - 34 },
        svg("title", { text: mark.name }),
      ),
      text(x(mark.at) + 3, 12 + 13 * row, mark.name, { class: "marked" }),
    );
  }
  spec.series.forEach((series, i) => {
    if (hidden.has(i) || !series.points.length) return;
    const banded = series.points.filter((p) => p.length > 2 && p[2] !== null);
    if (banded.length > 1) {
      const outline = [...banded.map((p) => [x(p[0]), y(p[2])]), ...banded.toReversed().map((p) => [x(p[0]), y(p[3])])];
      chart.append(svg("path", { class: `band c${i % COLOURS}`, d: `${path(outline)}Z` }));
    }
    chart.append(
      svg(
        "path",
        { ...stroke(i), d: path(thinned(series.points, width).map((p) => [x(p[0]), known(p[1]) ? y(p[1]) : null])) },
        svg("title", { text: series.name }),
      ),
    );
  });
  return chart;
};

const drawIntervals = (spec, width) => {
  const left = Math.min(width * 0.42, 12 + 7.2 * Math.max(1, ...spec.rows.map((row) => row.name.length)));
  const step = 20;
  const height = spec.rows.length * step + 34;
  const [x0, x1] = extent([spec.reference, ...spec.rows.flatMap((row) => [row.value, row.low, row.high])]);
  const x = scale([x0, x1], [left + 16, width - 14]);
  const chart = canvasOf(spec, width, height);
  for (const tick of ticks(x0, x1, Math.max(2, (width - left) / 80))) {
    chart.append(
      svg("line", { class: "grid", x1: x(tick), x2: x(tick), y1: 4, y2: height - 30 }),
      text(x(tick), height - 14, number(tick), { "text-anchor": "middle" }),
    );
  }
  if (spec.reference !== null && spec.reference !== undefined) {
    chart.append(
      svg("line", { class: "reference", x1: x(spec.reference), x2: x(spec.reference), y1: 4, y2: height - 30 }),
    );
  }
  const longest = Math.floor(left / 7);
  spec.rows.forEach((row, i) => {
    const middle = 14 + i * step;
    const named = row.name.length > longest ? `${row.name.slice(0, longest - 1)}…` : row.name;
    const group = svg(
      "g",
      { class: row.muted ? "muted" : null },
      svg("title", { text: `${row.name}: ${withInterval(row)}` }),
      text(left, middle + 4, named, { "text-anchor": "end" }),
    );
    if (row.low !== null && row.low !== undefined)
      group.append(svg("line", { class: "series c0", x1: x(row.low), x2: x(row.high), y1: middle, y2: middle }));
    if (row.value !== null)
      group.append(
        svg("circle", { class: row.filled === false ? "dot hollow" : "dot", cx: x(row.value), cy: middle, r: 4.5 }),
      );
    chart.append(group);
  });
  return chart;
};

const withInterval = (row) =>
  `${number(row.value)}${row.low === null || row.low === undefined ? "" : ` [${number(row.low)}, ${number(row.high)}]`}`;

const drawMatrix = (spec, width) => {
  const left = Math.min(width * 0.3, 16 + 7.2 * Math.max(2, ...spec.rows.map((r) => String(r).length)));
  const top = 6;
  const bottom = spec.names ? Math.min(150, 10 + 6.5 * Math.max(1, ...spec.columns.map((c) => String(c).length))) : 34;
  const side = Math.max(3, Math.min(spec.names ? 30 : 22, (width - left - 10) / spec.columns.length));
  const tall = spec.names ? side : Math.max(side, 8);
  const height = top + tall * spec.rows.length + bottom;
  const chart = canvasOf(spec, width, height);
  const largest = spec.high ?? Math.max(1e-12, ...spec.values.flat().map((v) => Math.abs(v ?? 0)));
  spec.values.forEach((row, i) =>
    row.forEach((value, j) => {
      if (value === null) return;
      const shade = Math.round(10 * Math.min(1, Math.abs(value) / largest));
      const marked = (spec.marked ?? []).some(([r, c]) => r === i && c === j);
      chart.append(
        svg(
          "rect",
          {
            class: `cell ${value < 0 ? "n" : "p"}${shade}${marked ? " chosen" : ""}`,
            x: left + j * side,
            y: top + i * tall,
            width: Math.max(1, side - 0.5),
            height: Math.max(1, tall - 0.5),
          },
          svg("title", { text: `${spec.rows[i]}, ${spec.columns[j]}: ${number(value)}` }),
        ),
      );
    }),
  );
  const every = Math.max(1, Math.ceil(14 / tall));
  spec.rows.forEach(
    (name, i) =>
      i % every === 0 &&
      chart.append(text(left - 5, top + (i + 0.5) * tall + 4, String(name), { "text-anchor": "end" })),
  );
  const sparse = spec.names ? 1 : Math.max(1, Math.ceil(34 / side));
  spec.columns.forEach((name, j) => {
    if (j % sparse) return;
    const [cx, cy] = [left + (j + 0.5) * side, top + tall * spec.rows.length + 12];
    chart.append(
      spec.names
        ? text(cx + 3, cy - 6, String(name), { "text-anchor": "end", transform: `rotate(-60 ${cx + 3} ${cy - 6})` })
        : text(cx, cy, String(name), { "text-anchor": "middle" }),
    );
  });
  if (spec.x)
    chart.append(
      text(
        left + (side * spec.columns.length) / 2,
        height - 4,
        `${spec.x}; the strongest shade is ${number(largest)}`,
        { "text-anchor": "middle", class: "axis" },
      ),
    );
  return chart;
};

const FIGURES = {
  lines: {
    draw: drawLines,
    table: (spec) => {
      const banded = spec.series.some((s) => s.points.some((p) => p.length > 2));
      return {
        columns: ["series", spec.x, spec.y, ...(banded ? ["low", "high"] : [])],
        rows: spec.series.flatMap((s) =>
          s.points.map((p) => [s.name, ...p, ...(banded && p.length < 3 ? [null, null] : [])]),
        ),
      };
    },
  },
  intervals: {
    draw: drawIntervals,
    table: (spec) => ({
      columns: ["name", spec.x, "low", "high"],
      rows: spec.rows.map((r) => [r.name, r.value, r.low ?? null, r.high ?? null]),
    }),
  },
  matrix: {
    draw: drawMatrix,
    table: (spec) => ({
      columns: ["", ...spec.columns.map(String)],
      rows: spec.rows.map((name, i) => [String(name), ...spec.values[i]]),
    }),
  },
  table: { draw: null, table: (spec) => spec },
};
