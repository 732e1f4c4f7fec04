// What is told of a model, and of a benchmark, as tables.

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function table(caption, heads, rows) {
  const head = element("tr", {}, ...heads.map((text) => element("th", {scope: "col", textContent: text})));
  const body = rows.map((row) => element("tr", {}, ...row.map((value) =>
    element("td", {textContent: String(value), className: typeof value === "number" ? "number" : ""}))));
  return element("table", {}, element("caption", {className: "hidden", textContent: caption}),
    element("thead", {}, head), element("tbody", {}, ...body));
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

// The proof: what the export measured between the artifact and the checkpoint, and what it had to keep.
function proof(parts) {
  const rows = [];
  for (const part of parts)
    for (const [name, value] of Object.entries(part.error)) {
      const words = name.split("."), measure = words.pop(), against = words.pop();
      const bound = against === "stored" ? part.tolerance[measure] : undefined;
      const wanted = bound === undefined ? "" : `${measure === "max_abs" ? "≤" : "≥"} ${bound}`;
      rows.push([words.join(" ") || part.covers.join("+"), measure, Number(value.toPrecision(6)), wanted,
        against === "fp32" ? "the checkpoint, fp32" : "the same stored weights"]);
    }
  return rows;
}

export function facts(model) {
  const edge = model.edge;
  const parts = edge.parts.map((part) => [part.covers.join(" + "), part.format, part.scheme, part.engine, megabytes(part.bytes)]);
  const line = `${edge.name} · recipe ${edge.recipe} · context ${edge.context} · ${edge.image_tokens} tokens a picture · ` +
    `${edge.threads} threads · ${edge.license}`;
  const found = [element("p", {textContent: line}), table("Parts", ["part", "format", "scheme", "engine", "size"], parts)];
  const measured = proof(edge.parts);
  if (measured.length)
    found.push(element("p", {textContent: "Proof, measured at export:"}),
      table("Proof", ["part", "measure", "measured", "had to be", "against"], measured));
  return found;
}

export const benchmarkTable = (rows) => table("Benchmark", ["test", "result", "engine"], rows.map((row) => [
  row.test,
  row.avg_ts !== undefined ? `${row.avg_ts.toFixed(2)} tokens/s` :
    row.avg_ns !== undefined ? `${(row.avg_ns / 1e9).toFixed(3)} s` :
    row.peak_bytes !== undefined ? megabytes(row.peak_bytes) : "",
  row.backends ?? ""]));
