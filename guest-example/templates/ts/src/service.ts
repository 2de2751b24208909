// A service that registers itself, greets, reports its registration, and calls other services by name.

import { resolve } from "leasehold:registry/discovery@0.2.0";
import { current, describe, register, type ServerNode } from "leasehold:registry/registrar@0.2.0";
import type { Error as HostError } from "leasehold:registry/registry-types@0.2.0";

const NAME = "{{name}}";
// Time that the key in etcd outlives a dead host.
const TTL_SECONDS = 10;

export const lifecycle: typeof import("leasehold:registry/lifecycle@0.2.0") = {
  // Called once, when the listener is open. The host keeps the registration until `stop`.
  start() {
    const node: ServerNode = {
      name: NAME,
      // Empty: the address at which the host serves this component.
      addr: "",
      version: "v1",
      // Undefined would be a weight that the host computes from the load of the machine.
      weight: 50,
      metadata: [["language", "ts"]],
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

// The engine has the event of service workers.
declare global {
  interface DedicatedWorkerGlobalScopeEventMap {
    fetch: FetchEvent;
  }
}

addEventListener("fetch", event => event.respondWith(respond(event.request)));

async function respond(request: Request): Promise<Response> {
  try {
    return await answer(new URL(request.url).pathname);
  } catch (error) {
    return new Response(`${reason(error)}\n`, { status: 502 });
  }
}

async function answer(path: string): Promise<Response> {
  const [, first, service] = path.split("/");
  if (path === "/") return new Response(`hello from ${NAME}\n`);
  if (path === "/status") return json(status());
  if (first === "nodes" && service) return json(resolve(service, "").map(({ addr, version }) => ({ addr, version })));
  if (first === "call" && service) return new Response(await call(service));
  return new Response("not found\n", { status: 404 });
}

// The registration that `start` made on another instance: each request has one of its own.
function status() {
  const [registration] = describe();
  if (!registration) return null;
  const { addr, version, metadata } = registration.node;
  const { weight, state } = registration.status;
  return { key: registration.key, addr, version, weight, state, metadata };
}

// Calls a service by name; the host picks one of its nodes.
async function call(service: string): Promise<string> {
  const response = await fetch(`http://${service}.leasehold/`);
  return `${service} answered ${response.status}: ${await response.text()}`;
}

function json(value: unknown): Response {
  return new Response(`${JSON.stringify(value)}\n`);
}

// The text of an error: those of the host are in its payload.
function reason(error: unknown): string {
  const payload = (error as { payload?: HostError } | null)?.payload;
  if (payload?.tag) return "val" in payload ? `${payload.tag}: ${payload.val}` : payload.tag;
  return error instanceof Error ? error.message : String(error);
}
