<?php

/*
 * A PHP process for tests. It reads one call per line as JSON and writes one JSON line for each.
 *
 *     {"method": "notifyTyping", "arguments": [1, 2, true]}  ->  {"result": true, "log": [], "ms": 0.4, "thrown": null}
 *
 * First argument: the settings as JSON. Second: "client" for Chatws\Client, "helper" for App\Helpers\WebSocket.
 * The method `fresh` calls the named method of a new client. `openFiles` opens files until that many are open or the
 * limit is reached. Every warning becomes an exception, even a suppressed one, as in some frameworks.
 */

declare(strict_types=1);

require __DIR__ . '/../../php/autoload.php';
require __DIR__ . '/../../php/legacy/WebSocket.php';

use App\Helpers\WebSocket;
use Chatws\Client;
use Chatws\Config;

set_error_handler(static function (int $level, string $message, string $file, int $line): never {
    throw new ErrorException($message, 0, $level, $file, $line);
});

$log = [];
$settings = json_decode($argv[1], true, flags: JSON_THROW_ON_ERROR);
$settings['logger'] ??= static function (string $level, string $message, array $context) use (&$log): void {
    $log[] = $message;
};
if ($settings['logger'] === 'broken') {
    $settings['logger'] = static fn () => throw new RuntimeException('the disk is full');
}
$client = new Client(Config::fromEnv($settings));
WebSocket::configure($client);

/** Decodes values that JSON cannot express: {"$base64": …}, {"$float": "NAN"}. */
function revive(mixed $value): mixed
{
    if (!is_array($value)) {
        return $value;
    }
    if (array_keys($value) === ['$base64']) {
        return base64_decode($value['$base64']);
    }
    if (array_keys($value) === ['$float']) {
        return constant($value['$float']);
    }

    return array_map(revive(...), $value);
}

/** Opens files and keeps them open. Returns the number of open files. */
function openFiles(int $count): int
{
    static $files = [];
    try {
        while (count($files) < $count) {
            $files[] = fopen('/dev/null', 'r');
        }
    } catch (ErrorException) {
        // The limit of open files is reached.
    }

    return count($files);
}

/** @param list<array{method: string, arguments: array}> $calls */
function batch(array $calls): bool
{
    global $client;

    return $client->batch(static function (Client $client) use ($calls): void {
        foreach ($calls as $call) {
            $client->{$call['method']}(...revive($call['arguments']));
        }
    });
}

while (($line = fgets(STDIN)) !== false) {
    $call = json_decode($line, true, flags: JSON_THROW_ON_ERROR);
    $arguments = revive($call['arguments']);
    $result = $thrown = null;
    $began = hrtime(true);
    try {
        $result = match (true) {
            $call['method'] === 'batch' => batch(...$arguments),
            $call['method'] === 'openFiles' => openFiles(...$arguments),
            $call['method'] === 'fresh' => (new Client(Config::fromEnv($settings)))->{$arguments[0]}(),
            ($argv[2] ?? 'client') === 'helper' => WebSocket::{$call['method']}(...$arguments),
            default => $client->{$call['method']}(...$arguments),
        };
    } catch (Throwable $error) {
        $thrown = $error::class . ': ' . $error->getMessage();
    }
    $response = ['result' => $result, 'thrown' => $thrown, 'ms' => (hrtime(true) - $began) / 1e6, 'log' => $log];
    $log = [];
    echo json_encode($response, JSON_THROW_ON_ERROR | JSON_INVALID_UTF8_SUBSTITUTE), "\n";
}
