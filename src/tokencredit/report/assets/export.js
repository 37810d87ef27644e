// The trace as it stands, for a paper; and the page's data.

const EXPORT_WIDTH = 900;

const traceSvg = () => {
  const [size, line, advance, margin] = [14, 24, 8.43, 20];
  const drawn = svg("svg", {
    xmlns: "http://www.w3.org/2000/svg",
    width: EXPORT_WIDTH,
    "font-family": "ui-monospace, Menlo, Consolas, monospace",
    "font-size": size,
  });
  const ink = getComputedStyle(document.body);
  let y = margin;
  for (const pane of panes) {
    drawn.append(
      svg("text", {
        x: margin,
        y: y + 12,
        fill: ink.color,
        "font-weight": "bold",
        text: `${pane.name}  ${pane.scaleNote.textContent}`,
      }),
    );
    y += line;
    let x = margin;
    for (const span of pane.spans) {
      const style = getComputedStyle(span);
      for (const part of span.textContent.split(/(?<=\n)/)) {
        const said = part.replace("\n", "");
        const width = [...said].length * advance;
        if (x > margin && x + width > EXPORT_WIDTH - margin) [x, y] = [margin, y + line];
        drawn.append(svg("rect", { x, y: y - 1, width, height: line - 5, fill: style.backgroundColor }));
        if (span.classList.contains("essential"))
          drawn.append(svg("line", { x1: x, x2: x + width, y1: y + line - 5, y2: y + line - 5, stroke: ink.color }));
        if (span.classList.contains("error"))
          drawn.append(svg("rect", { x, y: y - 1, width, height: line - 5, fill: "none", stroke: ink.color }));
        drawn.append(svg("text", { x, y: y + 14, fill: ink.color, "xml:space": "preserve", text: said }));
        x += width;
        if (part.endsWith("\n")) [x, y] = [margin, y + line];
      }
    }
    y += line * 1.6;
  }
  drawn.setAttribute("height", y);
  drawn.prepend(svg("rect", { width: EXPORT_WIDTH, height: y, fill: ink.backgroundColor }));
  return new XMLSerializer().serializeToString(drawn);
};

const exportSvg = () => download(`trace-${view.trace + 1}.svg`, new Blob([traceSvg()], { type: "image/svg+xml" }));

const exportPng = async () => {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(traceSvg())}`;
  await image.decode();
  const canvas = html("canvas", { width: image.width * 2, height: image.height * 2 });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  canvas.toBlob((blob) => download(`trace-${view.trace + 1}.png`, blob));
};

const exportJson = () => download("report.json", new Blob([JSON.stringify(page)], { type: "application/json" }));
