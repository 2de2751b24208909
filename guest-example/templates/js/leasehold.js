// The host's registry as functions and types of JavaScript: registration, look-ups, calls by name, and the log.
// @ts-check

import * as discovery from "leasehold:registry/discovery@0.2.0";
import * as registrar from "leasehold:registry/registrar@0.2.0";

/**
 * A node of a service. As registered by this component: an address is one of its own, and none the one at which the host serves it; a
 * weight is 1 to 100, and without one the host computes it from the load of the machine.
 * @typedef {{ name: string, addr?: string, version?: string, weight?: number, metadata?: Record<string, string> }} Node
 *
 * A node as it is in etcd.
 * @typedef {{ name: string, addr: string, version: string, weight?: number, metadata: Record<string, string> }} Published
 *
 * @typedef {"pending" | "registered" | "suspect" | "recovering" | "conflict" | "draining" | "stopped"} State
 *
 * A registration at one moment.
 * @typedef {{ key: string, node: Published, state: State, weight: number }} Registration
 *
 * Reason of an error, to decide by. `http`: a call by name had no response.
 * @typedef {"invalid-argument" | "access-denied" | "quota-exceeded" | "conflict" | "unavailable" | "timeout" | "not-registered"
 *   | "other" | "http"} Kind
 */

/** A call of the host that failed: `register user: access denied: name is not in this component's allow.names`. */
export class LeaseholdError extends Error {
  /** @param {string} subject @param {Kind} kind @param {string} [detail] @param {ErrorOptions} [options] */
  constructor(subject, kind, detail, options) {
    super([subject, kind.replaceAll("-", " "), detail].filter(Boolean).join(": "), options);
    this.name = "LeaseholdError";
    this.kind = kind;
  }
}

/**
 * The `lifecycle` of a service, to be exported: registers the node at the start, and deletes every registration at the end.
 * @param {Node & { ttlSeconds?: number }} node
 * @param {{ started?: (registration: Registration) => void, stopped?: () => void }} [actions]
 */
export function service(node, { started, stopped } = {}) {
  return {
    start() {
      try {
        started?.(register(node, node.ttlSeconds));
      } catch (error) {
        // The host takes a string, and nothing else, for an error of `start`.
        throw error instanceof Error ? error.message : String(error);
      }
    },
    stop() {
      try {
        stop();
      } catch (error) {
        // The host goes on until the key is gone.
        log(String(error));
      }
      stopped?.();
    },
  };
}

/**
 * Registers a node, and returns when it is in etcd. The key outlives a dead host by `ttlSeconds`; 0 is the host's own time.
 * @param {Node} node
 * @returns {Registration}
 */
export function register(node, ttlSeconds = 0) {
  const { name, addr = "", version = "", weight, metadata = {} } = node;
  return host(`register ${name}`, () => {
    const declared = { name, addr, version, weight, metadata: /** @type {[string, string][]} */ (Object.entries(metadata)) };
    return used(registrar.register(declared, ttlSeconds), handle => registration(handle.key(), handle.node(), handle.status()));
  });
}

/**
 * Deletes the registration of this key from etcd, or all of this component.
 * @param {string} [key]
 */
export function stop(key) {
  const handles = registrar.current();
  /** @type {unknown[]} */
  const errors = [];
  for (const handle of handles) {
    used(handle, () => {
      try {
        if (key === undefined || handle.key() === key) host(`stop ${handle.key()}`, () => handle.stop());
      } catch (error) {
        errors.push(error);
      }
    });
  }
  if (errors.length > 0) throw errors[0];
}

/**
 * The registrations of this component, whichever of its instances made them.
 * @returns {Registration[]}
 */
export function status() {
  return registrar.describe().map(({ key, node, status }) => registration(key, node, status));
}

/**
 * The nodes of a service, and of one version if there is one in the arguments.
 * @param {string} name
 * @returns {Published[]}
 */
export function resolve(name, version = "") {
  return host(`resolve ${name}`, () => discovery.resolve(name, version).map(published));
}

/**
 * One node of a service, by the host's balancer; `undefined` if there is no node.
 * @param {string} name
 * @returns {Published | undefined}
 */
export function pick(name, version = "") {
  const node = host(`pick ${name}`, () => discovery.pick(name, version));
  return node && published(node);
}

/**
 * Calls a service by name, as `fetch` calls a URL: the host picks a node, and goes on to the next one if a node takes no connection.
 * @param {string} name
 * @param {string} [path]
 * @param {RequestInit & { version?: string }} [init]
 */
export async function call(name, path = "/", { version, ...init } = {}) {
  try {
    return await fetch(`http://${version ? `${version}.` : ""}${name}.leasehold${path}`, init);
  } catch (cause) {
    // The engine's error has no reason in it.
    throw new LeaseholdError(`call ${name}`, "http", "no response; the reason is in the host's log", { cause });
  }
}

/**
 * Writes a line to the host's log.
 * @param {string} line
 */
export function log(line) {
  console.error(line);
}

/**
 * Runs a call of the host, whose error is an object with a payload.
 * @template T
 * @param {string} subject
 * @param {() => T} run
 */
function host(subject, run) {
  try {
    return run();
  } catch (error) {
    const payload = /** @type {{ payload?: { tag?: Kind, val?: string } }} */ (error)?.payload;
    throw payload?.tag ? new LeaseholdError(subject, payload.tag, payload.val) : error;
  }
}

/**
 * Uses a handle, and gives it back: the host keeps a limited number of them, and garbage collection comes late.
 * @template T
 * @param {registrar.Registration} handle
 * @param {(handle: registrar.Registration) => T} use
 */
function used(handle, use) {
  try {
    return use(handle);
  } finally {
    handle[Symbol.dispose]();
  }
}

/**
 * @param {string} key
 * @param {registrar.ServerNode} node
 * @param {registrar.Status} status
 * @returns {Registration}
 */
function registration(key, node, { state, weight }) {
  return { key, node: published(node), state, weight };
}

/**
 * @param {registrar.ServerNode} node
 * @returns {Published}
 */
function published({ metadata, ...node }) {
  return { ...node, metadata: Object.fromEntries(metadata) };
}
