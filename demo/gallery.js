// What stands in the columns, told by their conditions: the recorded run's card is pressed, its name is in the address.
const standing = () => {
  const name = new DOMParser().parseFromString(props.value ?? '', 'text/html').querySelector('[data-run]')?.dataset.run;
  for (const card of document.querySelectorAll('[data-recorded]'))
    card.setAttribute('aria-pressed', card.dataset.recorded === name);
  const now = new URLSearchParams(location.search);
  name ? now.set('recorded', name) : now.delete('recorded');
  history.replaceState(history.state, '', `?${now}`);
};
watch('value', standing);
