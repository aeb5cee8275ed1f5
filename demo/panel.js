// What all panels of the page share: hidden layers, the veil over dropped patches, the scale of the curve.
const shared = window.longtailView ??= {hidden: new Set(), veil: 0.84, log: false};
const MARKS = ['kept', 'recovered', 'merged', 'evicted', 'dropped'], HUES = 12, SIDE = 28;
const find = name => element.querySelector(name);
const word = key => document.querySelector(`#words [data-word="${key}"]`)?.textContent ?? key;
const tell = (kind, detail) => document.dispatchEvent(new CustomEvent(`longtail:${kind}`, {detail}));
const svg = find('.picture'), tip = find('.tip'), plot = find('.plot'), dot = find('.dot'), legend = find('.legend');
const none = find('.curve .none'), which = find('.which'), scrub = find('.scrub input'), said = find('.scrub output'), hand = find('.hand');
let seen = {}, cells = [], states = [], drawn = {}, view = 0, rank = [], layers = {}, chosen = new Set(), hot = -1, figure = null;

const make = (tag, attributes) => {
  const node = svg.appendChild(document.createElementNS('http://www.w3.org/2000/svg', tag));
  for (const name in attributes) node.setAttribute(name, attributes[name]);
  return node;
};
const square = ({x, y}) => `M${x} ${y}h${SIDE}v${SIDE}h${-SIDE}z`;
const cross = ({x, y}) => `M${x + 7} ${y + 7}l14 14m0 -14l-14 14`;
const path = (inside, shape) => cells.filter((_, p) => inside(p)).map(shape).join('');

// ---- the patches: SIDE units each, view after view where it stands in the crop

function lay(views) {
  cells = [];
  for (const [view, {grid: [rows, columns], box: [left, top, wide, high]}] of views.entries()) {
    const start = cells.length, x = left * columns / wide, y = top * rows / high;
    for (let i = 0; i < rows * columns; i++) {
      const row = Math.floor(i / columns), column = i % columns, at = (r, c) =>
        r >= 0 && c >= 0 && r < rows && c < columns ? start + r * columns + c : -1;
      cells.push({view, x: SIDE * (x + column), y: SIDE * (y + row), row, column, next: [
        at(row, column + 1), at(row + 1, column), at(row, column - 1), at(row - 1, column)]});
    }
  }
  return views.length ? [views[0].grid[1] / views[0].box[2], views[0].grid[0] / views[0].box[3]].map(n => SIDE * n) : [1, 1];
}

const EDGES = [({x, y}, i) => `M${x + SIDE - i} ${y}v${SIDE}`, ({x, y}, i) => `M${x} ${y + SIDE - i}h${SIDE}`,
  ({x, y}, i) => `M${x + i} ${y}v${SIDE}`, ({x, y}, i) => `M${x} ${y + i}h${SIDE}`];  // right, below, left, above
const outline = inside => cells.map((cell, p) => [0, 1].map(side =>  // along borders between in and out; not a view's own
  cell.next[side] >= 0 && inside(p) !== inside(cell.next[side]) ? EDGES[side](cell, 0) : '').join('')).join('');
const around = (of, mine) => cells.map((cell, p) => !mine(p) ? '' : cell.next.map((q, side) =>
  q >= 0 && of[q] === of[p] ? '' : EDGES[side](cell, 1.5)).join('')).join('');

function paint() {
  const [width, height] = lay(seen.views ?? []);
  svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
  svg.setAttribute('aria-label', `${word('patches')} ${props.column}`);
  svg.replaceChildren();
  if (!props.picture) return;
  make('image', {href: props.picture, width, height, preserveAspectRatio: 'none'});
  layers = {};
  const layer = (name, d, attributes) => (layers[name] ??= []).push(make('path', {d, fill: 'none', class: name, ...attributes}));
  if (!seen.method) return void layer('cut', cells.map(c => EDGES[0](c, 0) + EDGES[1](c, 0)).join(''), {});
  const is = (...names) => p => names.includes(states[p]);
  for (const name of ['dropped', 'merged', 'evicted']) layer(name, path(is(name), square), {class: `veil ${name}`});
  for (let hue = 0; hue < HUES; hue++) {
    const of = p => seen.group[p] >= 0 && seen.group[p] % HUES === hue && states[p] !== 'evicted';
    layer('merged', around(seen.group, of), {class: 'group', stroke: `hsl(${137.5 * hue} 85% 55%)`});
  }
  layer('kept', outline(is('kept', 'recovered', 'evicted')), {class: 'kept line'});
  layer('recovered', outline(is('recovered')), {class: 'recovered line'});
  for (const shade of ['under', 'over']) layer('evicted', path(is('evicted'), cross), {class: `cross ${shade}`});
  layer('hand', path(p => chosen.has(p), square), {class: 'chosen'});
  make('rect', {class: 'hot', width: SIDE, height: SIDE, visibility: 'hidden'});
  look();
  show(hot);
}

function look() {  // hidden layers, and how thick the veil is
  for (const name of MARKS) for (const node of layers[name] ?? []) node.style.display = shared.hidden.has(name) ? 'none' : '';
  for (const node of svg.querySelectorAll('.veil')) node.style.opacity = node.classList.contains('dropped') ? shared.veil : shared.veil / 2;
  for (const mark of legend.children) mark.setAttribute('aria-pressed', !shared.hidden.has(mark.dataset.mark));
}

// ---- after which token

function step() {
  const last = (seen.said?.length ?? 0) - 1, at = Math.min(+scrub.value, last);
  states = (seen.role ?? []).map((role, p) => seen.left[p] >= 0 && seen.left[p] <= at ? 'evicted' : role);
  for (const p of seen.recycled ?? []) if (states[p] !== 'evicted') states[p] = 'merged';
  said.textContent = last < 1 ? '' : `${word('after')} ${at + 1} / ${last + 1}  ${seen.text.slice(0, seen.said[at]).slice(-24)}`;
  legend.replaceChildren(...MARKS.map(mark => [mark, states.filter(state => state === mark).length])
    .filter(([, count]) => count).map(([mark, count]) => {
      const button = document.createElement('button');
      Object.assign(button, {type: 'button', className: `mark ${mark}`, textContent: `${word(mark)} ${count.toLocaleString('en')}`,
        title: word('toggle')});
      button.dataset.mark = mark;
      return button;
    }));
  paint();
}

// ---- the lit patch, here and in every other column

const number = value => Math.abs(value) >= 0.001 ? value.toPrecision(3) : value.toExponential(2);

function show(patch) {
  hot = patch < cells.length ? patch : -1;
  if (hot >= 0 && cells[hot].view !== view) turn(cells[hot].view);
  const rect = find('.hot'), r = rank[hot], lit = hot >= 0 && rect;
  rect?.setAttribute('visibility', lit ? 'visible' : 'hidden');
  dot.hidden = !(lit && r !== undefined && plot._fullLayout);
  if (!lit) return void (tip.textContent = '');
  const {x, y, row, column} = cells[hot];
  rect.setAttribute('x', x);
  rect.setAttribute('y', y);
  rect.dataset.patch = hot;
  tip.textContent = [`${word('patch')} ${hot}`, `${word('row')} ${row + 1}, ${word('column')} ${column + 1}`,
    ...(r === undefined ? [] : [`${word('rank')} ${r + 1}`, `${word('similarity')} ${number(drawn.similarity[r])}`,
      ...(r < drawn.objective.length ? [`f ${drawn.objective[r].toFixed(1)}`] : [])]),
    ...(states[hot] ? [word(states[hot])] : [])].join(' · ');
  if (dot.hidden) return;
  const {xaxis, yaxis} = plot._fullLayout;
  dot.dataset.rank = r + 1;
  dot.style.transform = `translate(${plot.offsetLeft + xaxis._offset + xaxis.d2p(r + 1)}px,
    ${plot.offsetTop + yaxis._offset + yaxis.d2p(drawn.similarity[r])}px)`;
}

const light = patch => patch === hot || tell('hot', {patch});
const under = event => {
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  return cells.findIndex(({x, y}) => at.x >= x && at.x < x + SIDE && at.y >= y && at.y < y + SIDE);
};

// ---- a selection by hand: click, drag, or arrows and space

let painting = null;
function choose(patch, on = !chosen.has(patch)) {
  if (patch < 0) return;
  chosen[on ? 'add' : 'delete'](patch);
  picked();
  return on;
}

function picked() {
  layers.hand?.[0].setAttribute('d', path(p => chosen.has(p), square));
  hand.hidden = !chosen.size;
  hand.querySelector('span').textContent = `${word('by_hand')} ${chosen.size}`;
  for (const button of hand.querySelectorAll('button')) button.textContent = word(`hand_${button.dataset.do}`);
}

svg.addEventListener('pointermove', event => {
  const patch = under(event);
  light(patch);
  if (painting !== null && event.buttons) choose(patch, painting);
});
svg.addEventListener('pointerleave', () => light(-1));
svg.addEventListener('pointerdown', event => seen.method && event.pointerType === 'mouse' && (painting = choose(under(event))));
svg.addEventListener('pointerup', event => {
  if (seen.method && event.pointerType !== 'mouse') light(under(event)), choose(under(event));
  painting = null;
});
svg.addEventListener('keydown', event => {
  const side = ['ArrowRight', 'ArrowDown', 'ArrowLeft', 'ArrowUp'].indexOf(event.key);
  if (side >= 0) light(hot < 0 ? 0 : cells[hot].next[side] >= 0 ? cells[hot].next[side] : hot);
  else if ([' ', 'Enter'].includes(event.key) && seen.method) choose(hot);
  else return;
  event.preventDefault();
});
hand.addEventListener('click', event => {
  const what = event.target.dataset.do;
  if (what === 'ask') return trigger('ask', {patches: [...chosen].sort((a, b) => a - b)});
  if (what === 'clear') chosen.clear();
  if (what === 'kept') states.forEach((state, p) => ['kept', 'recovered'].includes(state) && chosen.add(p));
  if (what) picked();
});

// ---- the curve

plot.addEventListener('pointermove', event => {
  const {xaxis} = plot._fullLayout ?? {}, at = xaxis && Math.round(xaxis.p2d(event.clientX - plot.getBoundingClientRect().left - xaxis._offset));
  if (drawn.order) light(at >= 1 && at <= drawn.order.length ? drawn.order[at - 1] : -1);
});
plot.addEventListener('pointerleave', () => light(-1));
plot.addEventListener('keydown', event => {
  const by = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  if (!by || !drawn.order) return;
  event.preventDefault();
  light(drawn.order[Math.max(0, Math.min(drawn.order.length - 1, (rank[hot] ?? -by) + by))]);
});

function turn(to) {  // to the curve of another view
  view = to;
  drawn = seen.curves?.[view] ?? {};
  rank = [];
  drawn.order?.forEach((patch, r) => rank[patch] = r);
  which.textContent = (seen.views?.length ?? 1) < 2 ? '' : view ? `${word('tile')} ${view}` : word('whole_image');
  curve();
}

async function curve() {
  const wanted = drawn.figure && JSON.stringify([drawn.figure, shared.log]);
  none.textContent = drawn.figure ? '' : seen.method ? `${seen.method} ${word('no_curve')}` : word('curve_here');
  plot.hidden = !drawn.figure;
  plot.setAttribute('aria-label', word('curve'));
  if (!drawn.figure || wanted === figure) return void (figure = wanted);
  figure = wanted;
  const Plotly = await plotly(), [{data, layout}] = JSON.parse(wanted, (_, it) => typeof it === 'string' ? longtailSpoken(it) : it);
  if (wanted !== figure) return;
  layout.yaxis.type = shared.log ? 'log' : 'linear';
  await Plotly.react(plot, data, layout, CONFIG);
  show(hot);
}

// ---- what others tell

const listen = (kind, heard) => {
  const once = event => element.isConnected ? heard(event) : document.removeEventListener(`longtail:${kind}`, once);
  document.addEventListener(`longtail:${kind}`, once);
};
legend.addEventListener('click', event => {
  const mark = event.target.dataset.mark;
  if (!mark) return;
  shared.hidden[shared.hidden.has(mark) ? 'delete' : 'add'](mark);
  tell('view');
});
scrub.addEventListener('input', step);
listen('hot', ({detail}) => show(detail.patch));
listen('view', () => { look(); curve(); });

function update() {
  const before = seen, followed = +scrub.value >= +scrub.max;
  seen = JSON.parse(props.value || '{}');
  if (!seen.method && before.method) chosen.clear(), picked();
  const late = seen.left?.some(token => token > 0);
  find('.scrub').hidden = !late;
  scrub.max = Math.max((seen.said?.length ?? 1) - 1, 0);
  scrub.setAttribute('aria-label', word('scrub'));
  if (followed || !late) scrub.value = scrub.max;
  step();
  turn(view < (seen.views?.length ?? 0) ? view : 0);
}
update();
watch(['value', 'picture'], update);
