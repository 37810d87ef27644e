// The trace as it stands, for a paper, on white; and the page's data.

const LARGEST = 16384; // pixels a side that every browser draws into one picture; beyond it some draw nothing
const EXPORT = { width: 900, size: 14, line: 24, margin: 20, most: 2000, ink: "#1b1b1b" };
const TONES = { p: "rgb(86,180,233)", w: "rgb(86,180,233)", n: "rgb(230,159,0)" };
const FONT = "Menlo, Consolas, monospace";

// The trace as SVG, and its height.
const drawTrace = () => {
  const drawn = svg("svg", {
    xmlns: "http://www.w3.org/2000/svg",
    width: EXPORT.width,
    "font-family": FONT,
    "font-size": EXPORT.size,
  });
  const pen = html("canvas").getContext("2d");
  pen.font = `${EXPORT.size}px ${FONT}`;
  const widthOf = (said) => pen.measureText(said).width;
  let y = EXPORT.margin;
  for (const pane of panes) {
    const left = pane.spans.length > EXPORT.most ? ` · the first ${EXPORT.most} of ${pane.spans.length} tokens` : "";
    const heading = `${pane.name}  ${pane.note.textContent}${left}`;
    drawn.append(svg("text", { x: EXPORT.margin, y: y + 12, fill: EXPORT.ink, "font-weight": "bold", text: heading }));
    y = drawTokens(drawn, pane.spans.slice(0, EXPORT.most), y + EXPORT.line, widthOf) + 1.6 * EXPORT.line;
  }
  drawn.setAttribute("height", y);
  drawn.prepend(svg("rect", { width: EXPORT.width, height: y, fill: "#ffffff" }));
  return { source: new XMLSerializer().serializeToString(drawn), height: y };
};

const drawTokens = (drawn, spans, top, widthOf) => {
  let [x, y] = [EXPORT.margin, top];
  for (const span of spans) {
    for (const part of partsOf(span.textContent, widthOf)) {
      const width = widthOf(part.said);
      if (x > EXPORT.margin && x + width > EXPORT.width - EXPORT.margin) [x, y] = [EXPORT.margin, y + EXPORT.line];
      drawPart(drawn, span, part.said, x, y, width);
      x += width;
      if (part.ends) [x, y] = [EXPORT.margin, y + EXPORT.line];
    }
  }
  return y;
};

// A token, broken at its line ends and where it is wider than the drawing.
const partsOf = (text, widthOf) => {
  const most = Math.floor((EXPORT.width - 2 * EXPORT.margin) / widthOf("m"));
  return text.split(/(?<=\n)/).flatMap((line) => {
    const letters = [...line.replace("\n", "")];
    const parts = [];
    for (let i = 0; i < letters.length || i === 0; i += most)
      parts.push({ said: letters.slice(i, i + most).join(""), ends: false });
    parts.at(-1).ends = line.endsWith("\n");
    return parts;
  });
};

const drawPart = (drawn, span, said, x, y, width) => {
  const [, tone, level] = /\b([pnw])(\d+)\b/.exec(span.className);
  const [top, bottom, stroke] = [y - 1, y + EXPORT.line - 6, EXPORT.ink];
  const marks = span.classList;
  const height = bottom - top;
  drawn.append(svg("rect", { x, y: top, width, height, fill: TONES[tone], "fill-opacity": level / 10 }));
  if (marks.contains("essential")) drawn.append(svg("line", { x1: x, x2: x + width, y1: bottom, y2: bottom, stroke }));
  if (marks.contains("starts"))
    drawn.append(svg("line", { x1: x, x2: x, y1: top, y2: bottom, stroke, "stroke-width": 0.5 }));
  if (marks.contains("answer"))
    drawn.append(svg("line", { x1: x, x2: x, y1: top, y2: bottom, stroke, "stroke-width": 3 }));
  if (marks.contains("error")) drawn.append(svg("rect", { x, y: top, width, height, fill: "none", stroke }));
  const peak = marks.contains("anchor") ? "none" : marks.contains("preplan") ? "2 2" : null;
  if (view.marks && peak) {
    drawn.append(svg("line", { x1: x, x2: x + width, y1: top, y2: top, stroke, "stroke-dasharray": peak }));
  }
  drawn.append(svg("text", { x, y: y + 14, fill: EXPORT.ink, "xml:space": "preserve", text: said }));
};

const exportName = (kind) => `trace-${traces[view.trace].number}.${kind}`;

// Why there is no picture, below the buttons; without a reason, nothing.
const explain = (reason) => {
  document.getElementById("export-problem")?.remove();
  if (!reason) return;
  const remedy = `Export it as SVG${view.methods.length > 1 ? ", or show fewer methods" : ""}.`;
  const told = `Trace ${traces[view.trace].number} cannot be a PNG: ${reason}. ${remedy}`;
  control("png").closest("p").after(html("p", { id: "export-problem", role: "alert", text: told }));
};

const exportSvg = () => {
  explain(null);
  download(exportName("svg"), new Blob([drawTrace().source], { type: "image/svg+xml" }));
};

// Twice as large as the SVG where that fits, and never smaller than it.
const exportPng = async () => {
  explain(null);
  const { source, height } = drawTrace();
  const scale = Math.min(2, LARGEST / height);
  if (scale < 1) {
    explain(`it is ${Math.ceil(height)} pixels tall, and browsers draw at most ${LARGEST} into one picture`);
    return;
  }
  try {
    const image = new Image();
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(source)}`;
    await image.decode();
    const size = { width: Math.floor(EXPORT.width * scale), height: Math.floor(height * scale) };
    const canvas = html("canvas", size);
    canvas.getContext("2d").drawImage(image, 0, 0, size.width, size.height);
    const blob = await new Promise((done) => canvas.toBlob(done));
    if (!blob) throw new Error("the browser drew nothing");
    download(exportName("png"), blob);
  } catch (error) {
    explain(error.message);
  }
};

const exportJson = () => download("report.json", new Blob([JSON.stringify(page)], { type: "application/json" }));
