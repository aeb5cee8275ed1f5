
const chinese = () => props.value === 'zh';
const spoken = text => text.replace(
  /\ue000([^\ue002]*)\ue002([^\ue001]*)\ue001/g, (_, name, english) => chinese() ? DICTIONARY[name] : english);
window.longtailSpoken = spoken;  // for what is measured before it is drawn
const ATTRIBUTES = ['aria-label', 'title', 'data-copied', 'data-testid'];  // the last is Gradio's, of a choice
const marked = text => text?.includes('\ue000');
function read(node) {  // a text, or an element with its attributes and all that is inside
  if (node.nodeType === Node.TEXT_NODE) return void (marked(node.data) && (node.data = spoken(node.data)));
  if (node.nodeType !== Node.ELEMENT_NODE) return;
  for (const name of ATTRIBUTES) {
    const text = node.getAttribute(name);
    if (marked(text)) node.setAttribute(name, spoken(text));
  }
  for (const child of node.childNodes) read(child);
}
read(document.body);
new MutationObserver(changes => {
  for (const {target, addedNodes} of changes) addedNodes.length ? addedNodes.forEach(read) : read(target);
}).observe(document.body, {subtree: true, childList: true, characterData: true, attributeFilter: ATTRIBUTES});
