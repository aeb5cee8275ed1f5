// The veil over dropped patches, the scale of the curve, hidden layers: shared by all panels, kept in the address.
const shared = window.longtailView ??= {hidden: new Set(), veil: 0.84, log: false};
const veil = element.querySelector('[name=veil]'), log = element.querySelector('[name=log]');
const copy = element.querySelector('[name=link]'), asked = new URLSearchParams(location.search);
const number = Number(asked.get('veil') ?? NaN);
if (number >= 0 && number <= 1) shared.veil = number;
shared.log = asked.get('log') === '1';
for (const name of (asked.get('hide') ?? '').split(',')) if (name) shared.hidden.add(name);
veil.value = shared.veil;
log.checked = shared.log;
const changed = () => {
  shared.veil = Number(veil.value);
  shared.log = log.checked;
  document.dispatchEvent(new CustomEvent('longtail:view'));
};
veil.addEventListener('input', changed);
log.addEventListener('change', changed);
document.addEventListener('longtail:view', () => {
  const now = new URLSearchParams(location.search);
  const keep = (name, value, usual) => value === usual ? now.delete(name) : now.set(name, value);
  keep('veil', shared.veil, 0.84);
  keep('log', shared.log ? '1' : '', '');
  keep('hide', [...shared.hidden].sort().join(','), '');
  history.replaceState(history.state, '', `?${now}`);
});
copy.addEventListener('click', async () => {
  const text = copy.textContent;
  await navigator.clipboard.writeText(location.href);
  copy.textContent = document.querySelector('#words [data-word=copied]').textContent;
  setTimeout(() => copy.textContent = text, 1500);
});
