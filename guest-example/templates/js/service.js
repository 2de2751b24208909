// A service that registers itself, greets, reports its registration, and calls other services by name.

import { resolve } from "leasehold:registry/discovery@0.2.0";
import { current, describe, register } from "leasehold:registry/registrar@0.2.0";

const NAME = "{{name}}";
// Time that the key in etcd outlives a dead host.
const TTL_SECONDS = 10;

export const lifecycle = {
  // Called once, when the listener is open. The host keeps the registration until `stop`.
  start() {
    const node = {
      name: NAME,
      // Empty: the address at which the host serves this component.
      addr: "",
      version: "v1",
      // Undefined would be a weight that the host computes from the load of the machine.
      weight: 50,
      metadata: [["language", "js"]],
    };
    try {
      // Standard error is the host's log.
      console.error(`registered as ${register(node, TTL_SECONDS).key()}`);
    } catch (error) {
      // A string: the host takes nothing else for an error of `start`.
      throw `register ${NAME}: ${reason(error)}`;
    }
  },

  // Called once, when the last request is complete.
  stop() {
    for (const registration of current()) {
      try {
        registration.stop();
      } catch {
        // After a timeout the host goes on until the key is gone.
      }
    }
    console.error("stopped");
  },
};

addEventListener("fetch", event => event.respondWith(respond(event.request)));

async function respond(request) {
  try {
    return await answer(new URL(request.url).pathname);
  } catch (error) {
    return new Response(`${reason(error)}\n`, { status: 502 });
  }
}

async function answer(path) {
  const [, first, service] = path.split("/");
  if (path === "/") return new Response(`hello from ${NAME}\n`);
  if (path === "/status") return json(status());
  if (first === "nodes" && service) return json(resolve(service, "").map(({ addr, version }) => ({ addr, version })));
  if (first === "call" && service) return new Response(await call(service));
  return new Response("not found\n", { status: 404 });
}

// The registration that `start` made on another instance: each request has one of its own.
function status() {
  const [{ key, node, status }] = describe();
  const { addr, version, metadata } = node;
  const { weight, state } = status;
  return { key, addr, version, weight, state, metadata };
}

// Calls a service by name; the host picks one of its nodes.
async function call(service) {
  const response = await fetch(`http://${service}.leasehold/`);
  return `${service} answered ${response.status}: ${await response.text()}`;
}

function json(value) {
  return new Response(`${JSON.stringify(value)}\n`);
}

// The text of an error: those of the host are in its payload.
function reason(error) {
  const payload = error?.payload;
  return payload?.tag ? `${payload.tag}: ${payload.val ?? ""}` : String(error?.message ?? error);
}
