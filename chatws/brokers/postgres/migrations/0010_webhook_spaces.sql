-- chatws.renew_leases_with_webhooks for any space: changes of contacts can be queued, too.
-- Programs that know migration 4 or a later one can work with it.

DROP FUNCTION chatws.renew_leases_with_webhooks(text, json, double precision, double precision, bigint);
CREATE FUNCTION chatws.renew_leases_with_webhooks(
    p_space text, p_node text, p_connections json, p_seconds double precision, p_now double precision, p_limit bigint
) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_kind text := CASE p_space WHEN 'contacts' THEN 'contact' ELSE 'agent' END;
    v_reply text := chatws.renew_leases(p_space, p_node, p_connections, p_seconds, p_now);
    v_joined text[] := ARRAY(SELECT json_array_elements_text(v_reply::json -> 'joined'));
    v_left text[] := ARRAY(SELECT json_array_elements_text(v_reply::json -> 'left'));
BEGIN
    IF cardinality(v_joined) + cardinality(v_left) > 0 THEN
        PERFORM chatws._add_webhooks(
            array_fill(v_kind || '_online', ARRAY[cardinality(v_joined)])
                || array_fill(v_kind || '_offline', ARRAY[cardinality(v_left)]),
            v_joined || v_left, p_limit, coalesce(p_now, extract(epoch FROM clock_timestamp())));
    END IF;
    RETURN v_reply;
END
$$;

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA chatws FROM PUBLIC;
