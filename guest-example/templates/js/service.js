// A service that registers itself, greets, reports its registration, and calls other services by name.

import { call, log, resolve, service, status } from "./leasehold.js";

const NAME = "{{name}}";

// The host calls it at the start, when the listener is open, and at the end, when the last request is complete. Without a weight
// the host computes one from the load of the machine.
export const lifecycle = service(
  { name: NAME, version: "v1", weight: 50, metadata: { language: "js" } },
  { started: registration => log(`registered as ${registration.key}`), stopped: () => log("stopped") },
);

addEventListener("fetch", event => event.respondWith(respond(event.request)));

async function respond(request) {
  try {
    return await answer(new URL(request.url).pathname);
  } catch (error) {
    return new Response(`${error.message}\n`, { status: 502 });
  }
}

async function answer(path) {
  const [, first, name] = path.split("/");
  if (path === "/") return new Response(`hello from ${NAME}\n`);
  if (path === "/status") return json(shown());
  if (first === "nodes" && name) return json(resolve(name).map(({ addr, version }) => ({ addr, version })));
  if (first === "call" && name) return new Response(await greeting(name));
  return new Response("not found\n", { status: 404 });
}

// The registration that was made at the start, on another instance: each request has one of its own.
function shown() {
  const [{ key, node, weight, state }] = status();
  return { key, addr: node.addr, version: node.version, weight, state, metadata: Object.entries(node.metadata) };
}

// The response of another service; the host picks one of its nodes.
async function greeting(name) {
  const response = await call(name);
  return `${name} answered ${response.status}: ${await response.text()}`;
}

function json(value) {
  return new Response(`${JSON.stringify(value)}\n`);
}
