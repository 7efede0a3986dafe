<?php

/*
 * The application behind the old page, for `php -S`: a login, and the session's user for `--auth callback`.
 */

declare(strict_types=1);

session_start();
$path = parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH);
header('Content-Type: application/json');

if ($path === '/login') {
    $_SESSION['user_id'] = (int) $_GET['user'];
    echo '{"ok":true}';
} elseif ($path === '/whoami' && isset($_SESSION['user_id'])) {
    echo json_encode(['user_id' => $_SESSION['user_id']], JSON_THROW_ON_ERROR);
} elseif ($path === '/whoami') {
    http_response_code(401);
    echo '{}';
} elseif ($path === '/favicon.ico') {
    http_response_code(204); // browsers request it with every page
} else {
    http_response_code(404);
    echo '{}';
}
