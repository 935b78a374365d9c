// Sets formulas by KaTeX 0.19.1, which lies beside this file: no network is asked. In pages they are what arithmatex
// marked, \(…\) and \[…\], in the text of notebooks what stands between dollars. document$ tells of every page, also of
// one that came without a reload.
document$.subscribe(() => {
  for (const place of document.querySelectorAll(".arithmatex:not([data-set])")) {
    const source = place.textContent.trim();
    place.dataset.set = "";
    katex.render(source.slice(2, -2), place, { displayMode: source.startsWith("\\["), throwOnError: false });
  }
  for (const text of document.querySelectorAll(".jp-RenderedMarkdown:not([data-set])")) {
    text.dataset.set = "";
    renderMathInElement(text, {
      delimiters: [
        { left: "$$", right: "$$", display: true },
        { left: "$", right: "$", display: false },
      ],
      throwOnError: false,
    });
  }
});
