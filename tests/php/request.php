<?php

/*
 * One HTTP request of an application, for `php -S`: three notifications, their results, and their total duration.
 */

declare(strict_types=1);

require __DIR__ . '/../../php/autoload.php';
require __DIR__ . '/../../php/legacy/WebSocket.php';

use App\Helpers\WebSocket;

$began = hrtime(true);
$results = [
    WebSocket::notifyNewMessage(456, ['id' => 1]),
    WebSocket::notifyConversationUpdated(456, ['id' => 456]),
    WebSocket::notifyMessageRead(456, 1, 7),
];
$ms = (hrtime(true) - $began) / 1e6;
header('Content-Type: application/json');
echo json_encode(['results' => $results, 'ms' => $ms, 'sapi' => PHP_SAPI], JSON_THROW_ON_ERROR);
