<?php

/* Parent and child publish at the same time, after the parent has opened its connection. The child needs its own. */

declare(strict_types=1);

require __DIR__ . '/../../php/autoload.php';

$client = new Chatws\Client(Chatws\Config::fromEnv(['address' => $argv[1]]));
$ok = $client->notifyUser(1, 'note', ['from' => 'parent, before']);
$child = pcntl_fork();
if ($child === 0) {
    for ($number = 0; $number < 20; ++$number) {
        $ok = $client->notifyUser(1, 'note', ['from' => "child {$number}"]) && $ok;
    }
    exit($ok ? 0 : 1);
}
for ($number = 0; $number < 20; ++$number) {
    $ok = $client->notifyUser(1, 'note', ['from' => "parent {$number}"]) && $ok;
}
pcntl_waitpid($child, $status);
$ok = $client->notifyUser(1, 'note', ['from' => 'parent, after']) && $ok;
exit($ok && pcntl_wexitstatus($status) === 0 ? 0 : 1);
