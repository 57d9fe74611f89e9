// A chart as an SVG file, in the light theme, and commands into the clipboard.
const COPIED_MS = 1500;

async function downloaded(id) {
  await plotlyLoaded;
  const root = document.documentElement;
  const was = printing;
  printing = true;
  root.classList.add("printing");
  const {data, layout} = themed(id, document.getElementById(id));
  printing = was;
  root.classList.toggle("printing", was);
  return Plotly.toImage(
    {data, layout: {...layout, paper_bgcolor: "#ffffff", plot_bgcolor: "#ffffff"}},
    {format: "svg", width: PRINTED_WIDTH, height: PRINTED_HEIGHT},
  );
}

for (const button of document.querySelectorAll(".download"))
  button.addEventListener("click", async () => {
    const link = document.createElement("a");
    link.href = await downloaded(button.dataset.chart);
    link.download = `${document.title.replace(/[^\w-]+/g, "_")}-${button.dataset.chart}.svg`;
    link.click();
  });

async function copy(text, element) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Not every browser lets a file use the clipboard.
    getSelection().selectAllChildren(element);
    document.execCommand("copy");
  }
}

for (const block of document.querySelectorAll("pre")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  const frame = document.createElement("div");
  frame.className = "command";
  block.replaceWith(frame);
  frame.append(block, button);
  button.addEventListener("click", async () => {
    await copy(block.textContent, block);
    button.textContent = "Copied";
    setTimeout(() => {
      button.textContent = "Copy";
    }, COPIED_MS);
  });
}
