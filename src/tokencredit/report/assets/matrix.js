// A matrix of shaded cells.

const drawMatrix = (spec, width) => {
  const { names, left, tall, side, bottom } = matrixLayout(spec, width);
  const top = 6;
  const height = top + tall * spec.rows.length + bottom;
  const wide = Math.max(width, left + side * spec.columns.length + 10);
  const chart = canvasOf(spec, wide, height);
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
  names.forEach((lines, i) => i % every === 0 && chart.append(...linesAt(left - 5, top + (i + 0.5) * tall, lines)));
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
  if (spec.x) {
    const said = `${spec.x}; the strongest shade is ${number(largest)}`;
    chart.append(centred(left + (side * spec.columns.length) / 2, height - 4, said, wide));
  }
  return chart;
};

// Names of rows stand left of the cells; those of columns below, slanted by 60 degrees, so that they reach to the left.
const matrixLayout = (spec, width) => {
  const columns = spec.names ? widest(spec.columns.map(String)) : 0;
  const names = spec.rows.map((name) => (spec.names ? wrapped(name, width * 0.42) : [String(name)]));
  const least = spec.names ? 12 : 3;
  const beside = 10 + Math.max(14, widest(names.flat()));
  const fitted = (left) => Math.max(least, Math.min(spec.names ? 30 : 22, (width - left - 10) / spec.columns.length));
  const left = Math.max(beside, 0.5 * columns - 0.5 * fitted(beside) + 4);
  const side = fitted(left);
  const tall = spec.names
    ? Math.max(side, 4 + LINE * Math.max(1, ...names.map((lines) => lines.length)))
    : Math.max(side, 8);
  return { names, left, side, tall, bottom: spec.names ? 0.87 * columns + 16 : 34 };
};
