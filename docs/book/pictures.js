// Draws the blocks of mermaid in a page, in the colours of the site's theme.
(() => {
    const blocks = document.querySelectorAll('code.language-mermaid');
    for (const block of blocks) {
        const picture = document.createElement('pre');
        picture.className = 'mermaid';
        picture.textContent = block.textContent;
        block.parentElement.replaceWith(picture);
    }
    const isDark = ['ayu', 'coal', 'navy'].some((theme) => document.documentElement.classList.contains(theme));
    mermaid.initialize({ startOnLoad: false, theme: isDark ? 'dark' : 'default' });
    mermaid.run();
})();
