"use strict";
// The address keeps what is chosen, so that a view can be sent to somebody else.
const fragment = {
  read() {
    return Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  },
  write(state) {
    const chosen = Object.entries(state).filter(([, value]) => value !== "");
    const text = "#" + new URLSearchParams(chosen);
    if (text !== (location.hash || "#")) history.replaceState(null, "", text);
  },
};
