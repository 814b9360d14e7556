/** The report: one offline file. */
import { mount } from './app.js';
import { fromFile } from './hosts.js';

fromFile().then((host) => mount(/** @type {Element} */ (document.getElementById('app')), host));
