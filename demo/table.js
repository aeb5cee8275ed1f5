// A table from JSON: text only, sorted by a click on a heading; how it is sorted outlives an update.
const place = element.querySelector('.sweep-sheet');
let by = -1, down = false;

const node = (tag, text, parent, attributes = {}) => {
  const made = parent.appendChild(document.createElement(tag));
  if (text != null) made.textContent = text;
  for (const name in attributes) made.setAttribute(name, attributes[name]);
  return made;
};

function compare(a, b) {
  const [[left, x], [right, y]] = [a.cells[by], b.cells[by]];
  if (left == null || right == null) return (left == null) - (right == null);
  const order = x != null && y != null ? x - y : String(left).localeCompare(String(right));
  return down ? -order : order;
}

function draw() {
  if (!props.value) return place.replaceChildren();
  const {columns, rows, keys} = JSON.parse(props.value);
  const lines = rows.map((cells, i) => ({cells, key: keys[i]}));
  const number = columns.map((_, i) => rows.some(cells => cells[i][1] != null));
  if (by >= columns.length) by = -1;
  if (by >= 0) lines.sort(compare);
  const table = document.createElement('table'), head = node('tr', null, node('thead', null, table));
  columns.forEach((name, i) => {
    const sorted = i === by ? (down ? 'descending' : 'ascending') : 'none';
    const cell = node('th', null, head, {scope: 'col', 'aria-sort': sorted, class: number[i] ? 'number' : 'word'});
    node('button', name, cell, {type: 'button', 'data-column': i});
  });
  const body = node('tbody', null, table);
  for (const {cells, key} of lines) {
    const row = node('tr', null, body, key ? {'data-key': key, tabindex: 0} : {});
    cells.forEach(([text], i) => node(i ? 'td' : 'th', text, row, {...(i ? {} : {scope: 'row'}), class: number[i] ? 'number' : 'word'}));
  }
  const focused = place.contains(document.activeElement) && document.activeElement.dataset.column;
  const {scrollLeft, scrollTop} = place;
  place.replaceChildren(table);
  place.scrollTo(scrollLeft, scrollTop);
  if (focused) place.querySelector(`[data-column="${focused}"]`)?.focus();
}

function pick(target) {
  const row = target.closest('tr[data-key]');
  if (row) trigger('row', {key: row.dataset.key});
}

place.addEventListener('click', event => {
  const heading = event.target.closest('[data-column]');
  if (!heading) return pick(event.target);
  const column = Number(heading.dataset.column);
  [by, down] = [column, by === column ? !down : false];
  draw();
});
place.addEventListener('keydown', event => event.key === 'Enter' && event.target.matches('tr') && pick(event.target));
draw();
watch('value', draw);
