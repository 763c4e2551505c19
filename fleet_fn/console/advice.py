"""What an operator should do about the reason of a device's state, in words.

The reasons are those that the function writes into devices' objects, and those that a preview tells.
"""

import re
from dataclasses import dataclass
from typing import Final

from fleet_fn.ddi.client import DDI_SERVER
from fleet_fn.drogue.refusals import COMMAND_API, DEVICE_REGISTRY, TOKEN_ENDPOINT
from fleet_fn.drogue.status_report import BLOCK_REFUSED, CONFIRMING, FINISHING, GIVEN_UP, SETTLING, UNKNOWN
from fleet_fn.firmware.trust import NOT_SIGNED
from fleet_fn.fleet.rows import SWAPPED, WRITING, Row
from fleet_fn.fleet.states import State
from fleet_fn.oci.token_realm import NONE_CONFIGURED, REFUSED
from fleet_fn.update.fitness import DOWNGRADE, HARDWARE, REQUIRES


@dataclass(frozen=True, slots=True)
class Advice:
    """What a reason means, and what to do about it."""

    #: What has happened.
    meaning: str
    #: What to do; empty if nothing.
    cure: str = ""
    #: Page and section of `docs/` with more.
    doc: str = ""
    #: The change of the rollout that may help, a key of `ACTIONS`; empty if none.
    action: str = ""


#: Changes of a rollout that may help, and their links' texts.
ACTIONS: Final = {
    "start": "Roll out another version",
    "resume": "Resume updates",
    "approve": "Approve the stage",
    "advance": "Advance the rollout",
    "retry": "Retry this device",
    "firmware": "See the firmware",
}

_STATUS_DOC: Final = "status-reports.md#what-do-i-do-about-it"
_OUTCOMES_DOC: Final = "outcomes.md#what-are-the-reasons-of-failed"
_REFUSALS_DOC: Final = "refusals.md#what-each-reason-means"
_HAWKBIT_DOC: Final = "hawkbit.md#what-do-the-reasons-mean"
_SETTINGS_DOC: Final = "settings.md"

#: Advice about reasons that are one word, or words that never change.
_WORDS: Final = {
    WRITING: Advice("The device gets the new firmware block by block."),
    SWAPPED: Advice(
        "The device has all blocks, and was told to boot the new version. Its next status tells how it went."
    ),
    FINISHING: Advice(
        "The target moved while the device was midway. It gets the rest of the version that it has begun first.",
        "Nothing. To begin the new target at once, set rollout.midway to restart.",
        "devices.md#if-the-target-moves-midway",
    ),
    CONFIRMING: Advice(
        "The device came up with a new version, and its target has moved since. It is told to keep the version before "
        "the next update begins.",
        "Nothing.",
        _STATUS_DOC,
    ),
    SETTLING: Advice(
        "Other bytes had the same version a moment ago. The device waits until no process of the function serves them.",
        "Nothing now. Give other bytes another version.",
        _STATUS_DOC,
    ),
    "paused": Advice(
        "Updates are paused by an operator, or while a gateway of the device is being updated itself.",
        "Resume updates once the cause is gone. A gateway's update ends by itself.",
        "policy.md#what-holds-a-device-back",
        "resume",
    ),
    "halted": Advice(
        "The version failed on too many devices, or was aborted. No device gets anything of it.",
        "Publish a fixed version, and roll that out. If the devices were to blame, resume the rollout.",
        "rollouts.md#fix",
        "start",
    ),
    "rollout": Advice(
        "The rollout has not let this device in yet: it is for other labels, or for a smaller share of the devices.",
        "Wait for the next stage, or move the rollout on.",
        "policy.md#what-does-a-stage-do",
        "advance",
    ),
    "approval": Advice(
        "The rollout waits for an operator's approval before it lets in more devices. Or hawkBit waits until the "
        "update is confirmed.",
        "Look at the devices that have the version, and approve the stage. What hawkBit assigns is confirmed there.",
        "policy.md#what-does-a-stage-do",
        "approve",
    ),
    "window": Advice(
        "Updates start, and devices are told to swap, only while the window of the policy is open; with hawkBit, while "
        "its own is open, too.",
        "Wait, or change rollout.window, or the action in hawkBit.",
        "policy.md#what-holds-a-device-back",
    ),
    "backoff": Advice(
        "The device swapped, and came back with its old version. It gets the update again after a pause, which grows "
        "with each attempt.",
        "Nothing yet. If other devices roll back too, pause the rollout.",
        _STATUS_DOC,
    ),
    GIVEN_UP: Advice(
        "The version did not come up on this device in as many attempts as the policy allows. The device stays on its "
        "version.",
        "Publish a version that comes up, and roll it out. If the device was to blame, let it try again.",
        _STATUS_DOC,
        "retry",
    ),
    "unmanaged": Advice(
        "Neither the device nor its application names a firmware, or hawkBit assigns none.",
        "Roll out a version, if it should have one. With hawkBit, assign a distribution to its target.",
        "firmware-formats.md#how-do-i-name-a-devices-firmware",
        "start",
    ),
    BLOCK_REFUSED: Advice(
        "The device asked for the same block five times in a row: it refuses the block, or never gets it.",
        "Pad the firmware to 32 bytes (publish --pad-to 32). Check that commands reach the device.",
        "devices.md#sizes-blocks-and-buffers",
    ),
    "device-offset": Advice(
        "The device was told to begin anew, and reports an offset that does not fit. The content of its flash is "
        "unknown, so it gets no block.",
        "Power-cycle it. If it keeps its progress through that, change spec.firmware.retry.",
        _STATUS_DOC,
    ),
    "device disabled": Advice(
        "The device or its application is disabled (spec.core.disabled), so it is sent nothing.",
        "Remove the whole core section of the object.",
        "refusals.md#what-does-a-406-mean",
    ),
    HARDWARE: Advice(
        "The firmware is not built for this device's hardware.",
        "Correct spec.firmware.hardware of the device, or publish the firmware for this hardware too.",
        "versions.md#how-do-i-keep-firmware-from-other-hardware",
        "firmware",
    ),
    REQUIRES: Advice(
        "The firmware asks for another version on the device before it can be installed.",
        "Publish a version that leads there, or name one.",
        "versions.md#how-do-i-lead-devices-through-a-version-that-they-must-not-skip",
        "firmware",
    ),
    DOWNGRADE: Advice(
        "The target is below the version that the device runs, and the policy refuses downgrades.",
        "Name a higher version, or set downgrades to allow.",
        "versions.md#what-does-downgrades-refuse-refuse",
        "start",
    ),
    "unsupported-source": Advice(
        "The function was not told where the firmware is: files need FIRMWARE_DIR, and hawkBit needs HAWKBIT_URL.",
        "Name a container image, or set the variable for the function.",
        "firmware-formats.md#how-do-i-name-a-devices-firmware",
        "start",
    ),
    "version-too-long": Advice(
        "The firmware's version is longer than the 16 bytes that the device can hold.",
        "Publish it with a shorter version.",
        "devices.md#sizes-blocks-and-buffers",
        "start",
    ),
    "internal error": Advice(
        "The function met an error of its own.", "Look at the function's log, and report it.", "operate.md#logs"
    ),
    UNKNOWN: Advice(
        "The function could not find out the device's target.", "Look at the function's log.", "operate.md#logs"
    ),
}

#: Advice about reasons that begin with, or contain, a text; the first that matches counts.
_TABLE: Final = (
    (
        rf"^{DDI_SERVER}: (40[0134]\b|its links lead)",
        Advice(
            "hawkBit refuses the function, or was not found: a wrong token, tenant or address.",
            "Check HAWKBIT_GATEWAY_TOKEN, HAWKBIT_TENANT and HAWKBIT_URL of the function, in this order.",
            _HAWKBIT_DOC,
        ),
    ),
    (
        rf"^{DDI_SERVER}: (action |the firmware that the device has begun)",
        Advice(
            "The action in hawkBit has no file that the function can choose and verify.",
            "Correct the software module, or choose a file by spec.firmware.hawkbit.part and file.",
            "hawkbit.md#which-file-does-a-device-get",
        ),
    ),
    (
        r"(for|of) an artifact\b",
        Advice(
            "The file that hawkBit announces cannot be had.",
            "Look at the file in its software module, and at what serves it.",
            _HAWKBIT_DOC,
        ),
    ),
    (
        rf"^{DDI_SERVER}: .*(the answer for|answered \d+ for)",
        Advice(
            "What answers at HAWKBIT_URL does not do so as hawkBit does.",
            "Look at hawkBit's log, and at the proxies before it.",
            _HAWKBIT_DOC,
        ),
    ),
    (
        rf"^{DDI_SERVER}: (no URL can carry|.*malformed URL|.*URL that is not http|.*plain HTTP is not allowed)",
        Advice(
            "No request can be made to the controller's address, or to a link of hawkBit.",
            "Correct spec.firmware.hawkbit.controller, or the addresses that hawkBit has in its links.",
            _HAWKBIT_DOC,
        ),
    ),
    (
        r"^the record of the device's update is malformed",
        Advice(
            "Something else has changed status.firmware.update in the device's object.",
            "Delete that section. The device begins anew.",
            "safe-updates.md#the-record",
        ),
    ),
    (
        rf"^{TOKEN_ENDPOINT}: .*refused",
        Advice(
            "The OpenID provider refuses the function's client.",
            "Check DROGUE_OIDC_CLIENT_ID and DROGUE_OIDC_CLIENT_SECRET of the function.",
            _REFUSALS_DOC,
        ),
    ),
    (
        rf"^{TOKEN_ENDPOINT}",
        Advice(
            "The function gets no usable token from the OpenID provider.",
            "Check DROGUE_OIDC_TOKEN_URL, and that the provider answers.",
            "settings.md#drogue-cloud",
        ),
    ),
    (
        rf"^{COMMAND_API}: 406",
        Advice(
            "Drogue Cloud's command endpoint takes no commands for this device: it does not know it, an external "
            "gateway refused, or the device's spec.core is in the way.",
            "Remove the whole core section of the device's spec. If it has none, look at its gateway.",
            "refusals.md#what-does-a-406-mean",
        ),
    ),
    (
        r": 413\b",
        Advice(
            "The object or the command is above 65,536 bytes, which Drogue Cloud refuses.",
            "Remove data from the object, such as long labels or statuses of other software.",
            _REFUSALS_DOC,
        ),
    ),
    (
        r": 404 for a write|: 403 for a write",
        Advice(
            "The function may read the object, but not write it; or it was deleted meanwhile.",
            "Give the function's user the role manager in the application.",
            "refusals.md#which-role-does-the-function-need",
        ),
    ),
    (
        rf"^({DEVICE_REGISTRY}|{COMMAND_API}).*(: 40[134]\b|our credentials were refused)",
        Advice(
            "Drogue Cloud refuses access: for a wrong name or DROGUE_API_URL, for a token that is not valid, or "
            "because the user is no member of the application.",
            "Check DROGUE_API_URL, the names, the token, and the membership, in this order.",
            _REFUSALS_DOC,
        ),
    ),
    (
        rf"^{DEVICE_REGISTRY}: .*(others keep changing|keeps changing|no time is left)|^no time is left",
        Advice(
            "Other programs kept writing the object at the same time, until no time was left.",
            "Nothing: the event is delivered again. If it goes on, look for a program that writes in a loop.",
            _REFUSALS_DOC,
        ),
    ),
    (
        rf"^{NOT_SIGNED}",
        Advice(
            "None of the trusted keys has signed this firmware, so no device gets it.",
            "Sign it with a trusted key, or correct FIRMWARE_VERIFY_KEYS.",
            "trust.md#what-is-checked-and-when",
            "firmware",
        ),
    ),
    (
        r"^denied: ",
        Advice(
            "This firmware was denied for ever, and no device gets a byte of it.",
            "Roll out another version.",
            "trust.md#what-if-a-key-or-a-firmware-is-bad",
            "start",
        ),
    ),
    (
        r"^FIRMWARE_(VERIFY_KEYS|DENY): ",
        Advice(
            "The function cannot read its keys or its list of denied firmware, and serves nothing until it can.",
            "Correct the file that the reason names.",
            "trust.md#what-is-checked-and-when",
        ),
    ),
    (
        r"certificate not trusted|TLS (refused|handshake)|TLS: |does not speak TLS|trusted authorities",
        Advice(
            "The function and the server do not agree on TLS.",
            "Correct the server's certificate, or name its authority with FIRMWARE_REGISTRY_CA_FILE or DROGUE_CA_FILE.",
            _SETTINGS_DOC,
        ),
    ),
    (
        rf"{NONE_CONFIGURED}|{REFUSED}|access denied|credentials|only a token is configured|asks for |"
        r"answered 401|a header can carry|where to get one|token realm",
        Advice(
            "The OCI registry denies access to the firmware.",
            "Check FIRMWARE_REGISTRY_USER and FIRMWARE_REGISTRY_TOKEN, or DOCKER_CONFIG, of the function.",
            "settings.md#firmware",
        ),
    ),
    (
        r"no tag is a semantic version in",
        Advice(
            "No tag of the repository is a version in the range that the application asks for.",
            "Publish one, or correct container.version.",
            "versions.md#how-is-a-version-chosen",
            "firmware",
        ),
    ),
    (
        r"no semantic version|no signature covers a tag",
        Advice(
            "The order of the versions cannot be told, and the function does not guess it.",
            "Give firmware and devices semantic versions, which the firmware's own annotation tells.",
            "versions.md#what-if-a-version-is-no-semantic-version",
            "firmware",
        ),
    ),
    (
        r"names a firmware of version|tags in .* keep moving",
        Advice(
            "A tag and the version of its firmware differ, so no version can be chosen in the range.",
            "Publish the firmware under the tag of its own version.",
            "versions.md#how-is-a-version-chosen",
            "firmware",
        ),
    ),
    (
        r"has more than \d+ tags|a list of more than",
        Advice(
            "The repository has more tags than the function reads.",
            "Remove old tags, or name a tag in the place of the range.",
            _OUTCOMES_DOC,
            "firmware",
        ),
    ),
    (
        r"\bno (tag|manifest|blob) .* in |^no image layout|no tag .* in the layout|^no file .* in FIRMWARE_DIR",
        Advice(
            "The application or the device names a firmware that is not there.",
            "Publish it, or name one that is there.",
            _OUTCOMES_DOC,
            "firmware",
        ),
    ),
    (
        r"digest mismatch|size mismatch|has another digest than its name|are not all there",
        Advice(
            "The bytes are not those that the manifest promises: the upload or the storage is damaged.",
            "Publish the firmware again, or look at the registry's disk.",
            _OUTCOMES_DOC,
            "firmware",
        ),
    ),
    (
        r"larger than the cache|firmware cache",
        Advice(
            "The function's cache has no room for the firmware.",
            "Raise FIRMWARE_CACHE_BYTES, or look at the volume of FIRMWARE_CACHE_DIR.",
            "firmware-cache.md",
        ),
    ),
    (
        r"^APPLICATIONS does not name|^DEVICE_LABELS wants",
        Advice(
            "This function serves other devices only, and ignores this one.",
            "Name the application in APPLICATIONS, or give the device the label, if the function is to serve it.",
            "settings.md#which-devices",
        ),
    ),
    (
        r"^FIRMWARE_REGISTRY is not set",
        Advice(
            "The function serves no container images, because it has no FIRMWARE_REGISTRY.",
            "Set FIRMWARE_REGISTRY for the function, or name a file.",
            "settings.md#firmware",
        ),
    ),
    (
        r"spec\.firmware\b|^invalid (reference|file name)|is not one valid path component|"
        r"FIRMWARE_DEFAULT_IMAGE",
        Advice(
            "The firmware section of the application or the device is malformed; the reason names the key.",
            "Correct that key. Devices that need it get nothing until then.",
            "policy.md#what-if-i-misspell-something",
        ),
    ),
    (
        r"FIRMWARE_DIR|\.(json|bin|sig)\b",
        Advice(
            "The firmware in the folder FIRMWARE_DIR, or its description, cannot be used.",
            "Correct the file that the reason names.",
            "firmware-formats.md#how-do-i-name-a-devices-firmware",
        ),
    ),
    (
        r"no URL can carry the name",
        Advice(
            "The device's name cannot be part of a URL, so no command can be sent to it.",
            "Create the device under another name.",
            "devices.md#sizes-blocks-and-buffers",
        ),
    ),
    (
        r"answered (429|5\d\d)|no answer|no connection|connection |answer cut short|host not found|unreachable|"
        r"takes too long|has not ended|too many open files|no local address|has no memory|no progress|in time",
        Advice(
            "The server that the reason names does not answer as it should.",
            "Nothing, if it was restarted: the event is delivered again. Otherwise look at the server, and whether "
            "the function reaches it.",
            "operate.md#what-if-a-device-does-not-update",
        ),
    ),
    (
        r"sends us|answer is not HTTP|not JSON|no JSON|is no list|redirects|answer larger|answered \d+|"
        r"answer for the|request not sent|libcurl|no address that|is elsewhere|lists the same",
        Advice(
            "The server that the reason names answers in a way that the function cannot use.",
            "Check its URL, and the proxies in between.",
            _SETTINGS_DOC,
        ),
    ),
    (
        r"^(verifying|looking for|the file is being|fetching|downloading|the firmware (was evicted|cache))|"
        r"other bytes had this version",
        Advice(
            "The firmware is being fetched or verified, which takes longer than an event may.",
            "Nothing: the device asks again.",
            "firmware-cache.md",
        ),
    ),
    (
        rf"{DEVICE_REGISTRY}|^{COMMAND_API}",
        Advice(
            "Drogue Cloud refuses a request about the device or its application.",
            "Correct what the reason names in their objects.",
            _REFUSALS_DOC,
        ),
    ),
    (
        r"(?i)\b(firmware|manifests?|index|images?|layers?|label|blob|annotations?|descriptor|config|layout|digest|"
        r"media type|checksum|size|version|platform|bundle|signature|tar|gzip|JSON object)\b",
        Advice(
            "The content of the repository is no firmware that the function can use; the reason says why.",
            "Publish the firmware again with fleet-fn publish, or name another version.",
            "firmware-formats.md#which-shapes-may-a-reference-have",
            "firmware",
        ),
    ),
    (
        rf"^{DDI_SERVER}",
        Advice(
            "hawkBit does not answer, or changes what it wants at this moment.",
            "Nothing at first: the event is delivered again. If it goes on, look at hawkBit.",
            _HAWKBIT_DOC,
        ),
    ),
)
_PATTERNS: Final = tuple((re.compile(pattern), advice) for pattern, advice in _TABLE)

#: Advice about a reason that is in no table.
DEFAULT: Final = Advice(
    "The update cannot go on, for the reason above.",
    "Correct what it names. The device goes on by itself with one of its next statuses.",
    "operate.md#what-if-a-device-does-not-update",
)

#: Advice about states whose reason does not tell enough.
_STATES: Final = {
    State.STALLED: Advice(
        "The device has been silent for an hour while it got blocks, or after it was told to swap.",
        "Look at its power and its connection. It goes on when it reports again.",
        _STATUS_DOC,
    ),
    State.UNKNOWN: Advice(
        "The device has never sent a status on the channel dfu, so the function does not know its version.",
        "Check that it is connected, and that it publishes its status.",
        "devices.md",
    ),
    State.IN_SYNC: Advice("The device runs the version that it should run."),
}


def advise(reason: str) -> Advice:
    """Return advice about a reason that the function gave."""
    if known := _WORDS.get(reason):
        return known
    return next((advice for pattern, advice in _PATTERNS if pattern.search(reason)), DEFAULT)


def advise_on(row: Row) -> Advice:
    """Return advice about the state of a device."""
    return _STATES.get(row.state) or advise(row.reason or UNKNOWN)


def all_advice() -> list[Advice]:
    """Return each advice of all tables."""
    return [*_WORDS.values(), *(advice for _, advice in _TABLE), *_STATES.values(), DEFAULT]
