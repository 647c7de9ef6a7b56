// Tables that are wider than the screen scroll by keyboard too.
new MutationObserver(() => {
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
}).observe(document.body, { childList: true, subtree: true });
